"""The simulator beside published measurements of whole systems, with nothing fitted to any of them.

1. TensorRT-LLM's throughput at an infinite request rate (`published/trtllm_throughput.toml`): dense models, three GPUs,
   ten lengths. Settings are the publication's or that engine's defaults: 8,192 tokens a step, 2,048 sequences, 90% of
   memory. KV in FP8, as those checkpoints have it.
2. Splitwise (Patel et al., ISCA 2024): Llama-2-70B, tensor parallel over 8, a prompt of 512 tokens and then one token
   at a time.

    python benchmarks/simulator_ladder.py [--shapes 5] [--out results/simulator_ladder.json]
"""

import argparse
import statistics
import tomllib
from itertools import repeat
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from miniserve.bench.record import write_record
from miniserve.errors import InvalidRequestError
from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.cost import Part
from miniserve.hardware.shape import Parallel, Precision
from miniserve.simulate.cluster import Cluster
from miniserve.simulate.deployment import Deployment, efficiency_for
from miniserve.simulate.models import shape_by_name
from miniserve.workloads.arrivals import Arrival

PUBLISHED = Path(__file__).parent / "published" / "trtllm_throughput.toml"
MOST_SEQUENCES, STEP_TOKENS = 2048, 8192
SPLITWISE = [("a100-80", 93.0, 45.0), ("h100", 53.9, 30.6)]  # ms for the prompt, ms a token


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
    cluster = Cluster(where, 1, prefix_caching=False)
    cluster.run(repeat(Arrival(0.0, prompt, output)), concurrency=full, warmup=full, counted=full)
    return cluster.tally.summary(cluster.seconds)["output_tokens_per_s"], full


def trtllm(num_shapes: int) -> list[dict[str, Any]]:
    """A row a point."""
    published = tomllib.loads(PUBLISHED.read_text())
    wanted = [
        (column, shape, measured)
        for column in published["columns"]
        for shape, measured in list(zip(published["shapes"], column["tokens_per_s"], strict=True))[:: 10 // num_shapes]
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
    for hardware, prompt_ms, token_ms in SPLITWISE:
        step = deployment("llama-2-70b", hardware, 8, "bf16", None).step_time
        for what, parts, published in (("prompt of 512", Part(0, 512), prompt_ms), ("a token", Part(512, 1), token_ms)):
            simulated = step.seconds([parts]) * 1000
            rows.append({"hardware": hardware, "what": what, "published_ms": published, "simulated_ms": simulated,
                         "ratio": simulated / published})  # fmt: skip
    return rows


def main() -> None:
    """Simulate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=int, default=10, choices=(1, 2, 5, 10))
    parser.add_argument("--out", type=Path, default=Path("results/simulator_ladder.json"))
    args = parser.parse_args()
    rows, times = trtllm(args.shapes), splitwise()
    table = Table("model", "on", "prompt / output", "published", "simulated", "ratio")
    for row in rows:
        simulated = f"{row['simulated']:,.0f}" if "simulated" in row else row["reason"]
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        table.add_row(row["model"], f"{row['tensor']} × {row['hardware']} {row['weights']}",
                      f"{row['prompt']} / {row['output']}", f"{row['published']:,}", simulated, ratio)  # fmt: skip
    for row in times:
        table.add_row("llama-2-70b", f"8 × {row['hardware']} bf16", row["what"], f"{row['published_ms']} ms",
                      f"{row['simulated_ms']:.1f} ms", f"{row['ratio']:.2f}")  # fmt: skip
    Console().print(table)
    ratios = [row["ratio"] for row in rows if "ratio" in row]
    summary = {
        "points": len(ratios),
        "median_ratio": statistics.median(ratios),
        "within_25_percent": sum(abs(ratio - 1) <= 0.25 for ratio in ratios) / len(ratios),
    }
    print(summary)
    data = {"trtllm": rows, "trtllm_summary": summary, "splitwise": times}
    command = f"python benchmarks/simulator_ladder.py --shapes {args.shapes}"
    write_record(args.out, data, command, simulated="A100, H100, H200 and B200 of the catalogue")


if __name__ == "__main__":
    main()
