"""The simulator beside published figures of whole systems. What was fitted to any of them says so in its file.

1. Arithmetic (`published/exact.toml`, and NVIDIA's claim in `miniserve.simulate.published`).
2. An all-to-all over a network (`published/deepep.toml`); other kernels: `fit_kernel_timings.py`.
3. TensorRT-LLM's throughput at an infinite request rate (`published/trtllm_throughput.toml`): dense models, three GPUs,
   ten lengths. Settings are the publication's or that engine's defaults: 8,192 tokens a step, 2,048 sequences, 90% of
   memory. KV in FP8, as those checkpoints have it. And single requests of an older engine (`published/splitwise.toml`).
4. DeepSeek-V3 on many devices (`published/racks.toml`): one rank's steps in the steady state, experts evenly loaded.
   And engines whose feed-forward parts have devices of their own (`published/afd.toml`).

    python benchmarks/simulator_ladder.py [--shapes 5] [--out results/simulator_ladder.json]
"""

import argparse
import math
import statistics
from bisect import bisect_right
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from miniserve.bench.record import write_record
from miniserve.errors import InvalidRequestError
from miniserve.hardware.afd import Sides
from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.cost import Part, collective
from miniserve.hardware.efficiency import IDEAL, Efficiency
from miniserve.hardware.roofline import Roofline
from miniserve.hardware.shape import Parallel, Precision
from miniserve.simulate.cluster import Cluster
from miniserve.simulate.deployment import Deployment, efficiency_for
from miniserve.simulate.ingredients import times_better
from miniserve.simulate.models import shape_by_name
from miniserve.simulate.published import load_published
from miniserve.tables import read_toml
from miniserve.workloads.arrivals import Arrival

PUBLISHED = Path(__file__).parent / "published"
MOST_SEQUENCES, STEP_TOKENS = 2048, 8192


def published(name: str) -> dict[str, Any]:
    """A file of published figures."""
    return read_toml(PUBLISHED / f"{name}.toml")


def deployment(model: str, hardware: str, tensor: int, weights: str, kv: str | None) -> Deployment:
    """As it was measured."""
    device = load_catalog().accelerator(hardware)
    return Deployment(
        device, shape_by_name(model), Precision.of(weights, kv), Parallel(tensor=tensor), efficiency_for(device),
        max_num_seqs=MOST_SEQUENCES, max_num_batched_tokens=STEP_TOKENS,
    )  # fmt: skip


def throughput(where: Deployment, prompt: int, output: int) -> tuple[float, int]:
    """Output tokens a second once the engine is full, and how many requests that is."""
    # As many as have room to the end: that engine's default lets nobody in whom it might have to put out again.
    full = max(1, min(MOST_SEQUENCES, where.num_blocks // -(-(prompt + output) // where.block_size)))
    cluster = Cluster([where], prefix_caching=False)
    cluster.run(repeat(Arrival(0.0, prompt, output)), concurrency=full, warmup=full, counted=full)
    return cluster.tally.summary(cluster.seconds)["output_tokens_per_s"], full


def trtllm(num_shapes: int) -> list[dict[str, Any]]:
    """A row a point."""
    figures = published("trtllm_throughput")
    wanted = [
        (column, shape, measured)
        for column in figures["columns"]
        for shape, measured in list(zip(figures["shapes"], column["tokens_per_s"], strict=True))[:: 10 // num_shapes]
    ]
    rows = []
    for column, (prompt, output), measured in track(wanted, "simulating", console=Console(stderr=True)):
        row = {name: column[name] for name in ("model", "hardware", "tensor", "weights")}
        row |= {"prompt": prompt, "output": output, "published": measured}
        try:
            where = deployment(column["model"], column["hardware"], column["tensor"], column["weights"], "fp8")
            simulated, full = throughput(where, prompt, output)
            row |= {"simulated": simulated, "ratio": simulated / measured, "concurrency": full}
        except InvalidRequestError as error:
            row["reason"] = str(error)
        rows.append(row)
    return rows


def splitwise() -> list[dict[str, Any]]:
    """A row a time."""
    rows = []
    for point in published("splitwise")["points"]:
        step = deployment("llama-2-70b", point["hardware"], 8, "bf16", None).step_time
        for what, part in (("prompt of 512", Part(0, 512)), ("a token", Part(512, 1))):
            measured, simulated = point["prompt_ms" if part.start == 0 else "token_ms"], step.seconds([part]) * 1000
            rows.append({"hardware": point["hardware"], "what": what, "published_ms": measured,
                         "simulated_ms": simulated, "ratio": simulated / measured})  # fmt: skip
    return rows


def exact() -> list[dict[str, Any]]:
    """A row a figure that is arithmetic."""
    day, claim = published("exact")["day"], load_published()[0].claim
    newer, older = (load_catalog().accelerator(key) for key in (claim.newer, claim.older))
    cost, energy = times_better(newer, older, claim.tokens_per_s[0] / claim.tokens_per_s[1])
    return [
        {"what": day["what"], "published": day["published"],
         "computed": day["nodes"] * day["devices_a_node"] * day["usd_a_device_hour"] * 24},
        {"what": "tokens for a dollar, times", "published": round(claim.cost_times), "computed": cost},
        {"what": "tokens for a joule, times", "published": round(claim.energy_times), "computed": energy},
    ]  # fmt: skip


def network() -> list[dict[str, Any]]:
    """A row an all-to-all."""
    figures, device = published("deepep"), load_catalog().accelerator("h800")
    timer, rows = Roofline(device, efficiency_for(device)), []
    numbers = figures["tokens"] * figures["per_token"] * figures["hidden"]
    for name, size in (("dispatch", 1), ("combine", 2)):
        for ranks, measured in zip(figures["ranks"], figures[f"{name}_us"], strict=True):
            simulated = timer.seconds(collective("all_to_all", numbers * size, ranks)) * 1e6
            rows.append({"what": name, "ranks": ranks, "published_us": measured, "simulated_us": simulated,
                         "ratio": simulated / measured})  # fmt: skip
    return rows


def rank(point: dict[str, Any], *, overlap: bool) -> Deployment:
    """One of a point's, as it was measured."""
    device = load_catalog().accelerator(point["hardware"])
    precision = replace(Precision.of(point["weights"], point["kv"]), attention=point["attention"])
    parallel = Parallel(1, point["ranks"], point["redundant"])
    shape = shape_by_name("deepseek-v3")
    return Deployment(device, shape, precision, parallel, efficiency_for(device), overlap=overlap)


def rank_tokens_per_s(point: dict[str, Any], *, overlap: bool) -> tuple[float, int]:
    """Of one device, and how many requests that takes at once."""
    where = rank(point, overlap=overlap)
    if "prompt" in point:
        cached, together = round(point["cached"] * point["prompt"]), point["batch"]
        seconds = where.step_time.seconds([Part(cached, point["prompt"] - cached)] * together)
        return together * point["prompt"] / seconds, together
    context = point["context"]

    def step_s(requests: int) -> float:
        return where.step_time.decode_seconds(requests, requests * context, context)

    most = where.num_blocks * where.block_size // context
    limit_s = 1 / point["tokens_per_s_user"] if "tokens_per_s_user" in point else math.inf
    batch = point.get("batch") or bisect_right(range(1, most + 1), limit_s, key=step_s)
    return batch / step_s(batch), batch


def racks() -> list[dict[str, Any]]:
    """A row a point: as it was run, and as it would be if nothing overlapped."""
    rows = []
    for point in published("racks")["points"]:
        simulated, batch = rank_tokens_per_s(point, overlap=point["overlap"])
        without, _ = rank_tokens_per_s(point, overlap=False)
        row = {name: point[name] for name in ("name", "hardware", "ranks", "weights", "tokens_per_s", "overlap")}
        row |= {"simulated": simulated, "without_overlap": without, "batch": batch}
        row["ratio"] = simulated / point["tokens_per_s"]
        rows.append(row | ({"reason": point["reason"]} if "reason" in point else {}))
    return rows


def apart() -> list[dict[str, Any]]:
    """A row an engine in two parts: of all ratios of its two sides, the one that does most; and at the roofline."""
    rows = []
    for point in published("afd")["points"]:
        device = load_catalog().accelerator(point["hardware"])
        simulated, batch, sides = best_ratio(point, efficiency_for(device))
        rows.append({
            **{name: point[name] for name in ("name", "hardware", "model", "weights", "devices", "tokens_per_s")},
            "simulated": simulated, "sides": sides, "batch": batch, "at_roofline": best_ratio(point, IDEAL)[0],
            "ratio": simulated / point["tokens_per_s"], "reason": point["reason"],
        })  # fmt: skip
    return rows


def best_ratio(point: dict[str, Any], efficiency: Efficiency) -> tuple[float, int, str]:
    """Tokens a second of one device, requests of a rank, and the two sides."""
    precision = replace(Precision.of(point["weights"], point["kv"]), attention=point["attention"])
    device, shape = load_catalog().accelerator(point["hardware"]), shape_by_name(point["model"])
    found = []
    for ffn in range(1, point["devices"]):
        sides = f"{point['devices'] - ffn}x{ffn}"
        try:
            where = Deployment(device, shape, precision, efficiency=efficiency,
                               sides=Sides.parse(sides, shape, point["batches"]))  # fmt: skip
            found.append((*within(where, point["context"], 1 / point["tokens_per_s_user"]), sides))
        except InvalidRequestError:  # cannot be shared out among so many, or does not fit
            continue
    return max(found)


def within(where: Deployment, context: int, limit_s: float) -> tuple[float, int]:
    """Tokens a second of one device, with as many requests of each rank as have one within the limit."""
    most = where.num_blocks * where.block_size // context
    step_time = where.step_time
    batch = bisect_right(
        range(1, most + 1),
        limit_s,
        key=lambda requests: step_time.decode_seconds(requests, requests * context, context),
    )
    if not batch:
        return 0.0, 0
    return batch / step_time.decode_seconds(batch, batch * context, context) / where.num_devices, batch


def main() -> None:
    """Simulate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=int, default=10, choices=(1, 2, 5, 10))
    parser.add_argument("--out", type=Path, default=Path("results/simulator_ladder.json"))
    args = parser.parse_args()
    data: dict[str, Any] = {"exact": exact(), "network": network(), "racks": racks(), "apart": apart(),
                            "splitwise": splitwise()}  # fmt: skip
    data["trtllm"] = rows = trtllm(args.shapes)
    ratios = [row["ratio"] for row in rows if "ratio" in row]
    data["trtllm_summary"] = {
        "points": len(ratios),
        "median_ratio": statistics.median(ratios),
        "within_25_percent": sum(abs(ratio - 1) <= 0.25 for ratio in ratios) / len(ratios),
    }
    for name, found in data.items():
        Console().print(table(name, found if isinstance(found, list) else [found]))
    command = f"python benchmarks/simulator_ladder.py --shapes {args.shapes}"
    write_record(args.out, data, command, simulated="A100, H100, H200, H800, B200 and GB200 of the catalogue")


def table(name: str, rows: list[dict[str, Any]]) -> Table:
    """Of rows with the same columns, or some of them."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    found = Table(*columns, title=name, title_justify="left")
    for row in rows:
        found.add_row(*(f"{value:,.2f}" if isinstance(value, float) else str(value) for value in map(row.get, columns)))
    return found


if __name__ == "__main__":
    main()
