"""Prefill and decode apart on racks, under recorded traffic: goodput against load, simulated.

72 GPUs twice: nine boards of eight H100s, with a network between the boards; and one GB200 NVL72, in which every GPU
reaches every other through NVLink. Each is nine engines of eight GPUs with a 70-billion-parameter model: all nine do
everything, or some of them compute prompts alone. The traffic is recorded: the first requests of Mooncake's
conversations, long prompts that share beginnings, and of Azure's, played faster than they came.

    python benchmarks/disaggregation_racks.py --mooncake FILE --azure FILE

takes the traces from their authors' files (`miniserve simulate --help` says which) and writes
results/disaggregation_racks.json; some minutes.
"""

import argparse
import statistics
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import track

from miniserve.bench.record import write_record
from miniserve.core.routing import KVAware
from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.devices import Accelerator
from miniserve.hardware.shape import Parallel, Precision
from miniserve.simulate.cluster import Cluster
from miniserve.simulate.deployment import Deployment, efficiency_for
from miniserve.simulate.models import shape_by_name
from miniserve.simulate.storage import Link
from miniserve.workloads.service import SLO
from miniserve.workloads.traces import origin, read_trace

MODEL, ENGINES, TENSOR = "llama-3.1-70b", 9, 8
BUDGETS = {"together": 2048, "prefill": 8192, "decode": 2048}  # tokens of a step
#: Rack: its accelerator, and whether KV goes through the accelerators' own links, not through their network cards.
RACKS = {"9 boards of 8 H100": ("h100", False), "GB200 NVL72": ("gb200", True)}


class Traffic(NamedTuple):
    """One trace: how many of its requests, what users were promised, engines for prompts, and how much faster than
    recorded requests come, by rack.
    """

    requests: int
    slo: str
    splits: tuple[int, ...]
    speeds: dict[str, tuple[int, ...]]


BOARDS, NVL72 = RACKS
TRAFFIC = {
    "mooncake": Traffic(300, "ttft:5000,tpot:25", (0, 5, 7), {BOARDS: (1, 2), NVL72: (2, 4)}),
    "azure-conv": Traffic(1500, "ttft:1000,tpot:15", (0, 2, 4), {BOARDS: (8, 16), NVL72: (16,)}),
}


def deployment(device: Accelerator, role: str) -> Deployment:
    """One engine of eight GPUs."""
    return Deployment(
        device, shape_by_name(MODEL), Precision.of("bf16", "bf16"), Parallel(tensor=TENSOR), efficiency_for(device),
        max_num_batched_tokens=BUDGETS[role],
    )  # fmt: skip


def link_bytes_per_s(rack: str) -> float:
    """What the KV of one engine for prompts goes through: eight GPUs' share of it."""
    name, inside = RACKS[rack]
    device = load_catalog().accelerator(name)
    bandwidth = device.link_bandwidth if inside else device.network_bandwidth
    assert bandwidth is not None
    return TENSOR * bandwidth


def simulate(path: Path, traffic: str, rack: str, prefill: int, speed: float) -> dict[str, Any]:
    """One point."""
    device = load_catalog().accelerator(RACKS[rack][0])
    load = TRAFFIC[traffic]
    cluster = Cluster(
        [deployment(device, "decode" if prefill else "together")] * (ENGINES - prefill),
        router=KVAware(),
        slo=SLO.parse(load.slo),
        prefill=[deployment(device, "prefill")] * prefill,
        make_link=lambda: Link(link_bytes_per_s(rack), 1e-4),
    )
    arrivals = list(islice(read_trace(path, speed=speed), load.requests))
    cluster.run(iter(arrivals))
    found, rate = cluster.tally.summary(cluster.seconds), len(arrivals) / arrivals[-1].at_s
    return {
        "traffic": traffic, "rack": rack, "prefill": prefill, "speed": speed, "rate_per_s": rate,
        "slo_attainment": found["slo_attainment"],
        "goodput_per_s": rate * found["slo_attainment"],
        "ttft_s": {name: found["ttft_s"][name] for name in ("p50", "p90")},
        "tpot_p90_s": found["tpot_s"]["p90"],
        "itl_p99_s": found["itl_s"]["p99"],
        "cached_share": found["cached_share"],
    }  # fmt: skip


def mean_lengths(path: Path, requests: int) -> dict[str, float]:
    """Of a trace's first requests: tokens of prompts and of answers."""
    some = list(islice(read_trace(path), requests))
    return {
        "prompt": statistics.mean(arrival.prompt_tokens for arrival in some),
        "output": statistics.mean(arrival.output_tokens for arrival in some),
    }


def all_points() -> list[tuple[str, str, int, float]]:
    """What is simulated."""
    return [
        (traffic, rack, prefill, speed)
        for traffic, load in TRAFFIC.items()
        for rack in RACKS
        for speed in load.speeds[rack]
        for prefill in load.splits
    ]


def record(paths: dict[str, Path], points: list[dict[str, Any]]) -> None:
    """Write what was simulated."""
    data = {
        "model": MODEL, "engines": ENGINES, "gpus_each": TENSOR, "budgets": BUDGETS,
        "traces": {name: origin(path) for name, path in paths.items()},
        "promises": {name: load.slo for name, load in TRAFFIC.items()},
        "requests": {name: load.requests for name, load in TRAFFIC.items()},
        "mean_tokens": {name: mean_lengths(path, TRAFFIC[name].requests) for name, path in paths.items()},
        "link_bytes_per_s": {rack: link_bytes_per_s(rack) for rack in RACKS},
        "points": points,
    }  # fmt: skip
    files = " ".join(f"--{name.split('-')[0]} {path.name}" for name, path in paths.items())
    command = f"python benchmarks/disaggregation_racks.py {files}"
    names = " and ".join(load_catalog().accelerator(name).name for name, _ in RACKS.values())
    target = Path(__file__).parents[1] / "results" / "disaggregation_racks.json"
    write_record(target, data, command, simulated=f"72 of each: {names}")


def main() -> None:
    """Simulate, and write the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mooncake", type=Path, required=True)
    parser.add_argument("--azure", type=Path, required=True)
    options = parser.parse_args()
    paths = {"mooncake": options.mooncake, "azure-conv": options.azure}
    points = [
        simulate(paths[traffic], traffic, rack, prefill, speed)
        for traffic, rack, prefill, speed in track(all_points(), "simulating")
    ]
    record(paths, points)
    for point in points:
        print(
            f"{point['traffic']:11} {point['rack']:19} {point['prefill']} of {ENGINES} for prompts, "
            f"{point['rate_per_s']:6.1f}/s: good {point['slo_attainment']:.0%}, "
            f"TTFT p90 {point['ttft_s']['p90']:.2f} s, TPOT p90 {point['tpot_p90_s'] * 1e3:.0f} ms"
        )


if __name__ == "__main__":
    main()
