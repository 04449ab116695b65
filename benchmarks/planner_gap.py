"""Why `miniserve plan` and NVIDIA's aiconfigurator differ on Qwen3 32B: one thing changed at a time.

Eight H200s, 4,000 tokens in and 500 out, a first token within a second and 20 ms a token. Aggregated, on engines of two
devices, aiconfigurator said 438 tokens/s a device; disaggregated 520. It multiplies the latencies of a disaggregated
prefill by 1.1 and of a decode by 1.08, and then takes 0.9 and 0.92 of their rates, for bubbles and seats that are not
taken (its `sdk/task` and `sdk/picking`); nothing here is fitted to it.

    python benchmarks/planner_gap.py [--out results/planner_gap.json]
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from miniserve.bench.record import write_record
from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.shape import Parallel, Precision
from miniserve.simulate.capacity import Load, largest, try_load
from miniserve.simulate.deployment import Deployment, efficiency_for
from miniserve.simulate.models import shape_by_name
from miniserve.workloads.arrivals import Arrival
from miniserve.workloads.service import SLO

LOAD = Load([Arrival(0.0, 4000, 500)], SLO.parse("ttft:1000,tpot:20"))
OVERHEADS_MS = (0, 1, 2, 3, 4)


def engine(tensor: int = 2, **options: Any) -> Deployment:
    """As `miniserve plan` has them."""
    device = load_catalog().accelerator("h200")
    return Deployment(
        device, shape_by_name("qwen3-32b"), Precision.of("fp8_block"), Parallel(tensor), efficiency_for(device),
        max_num_seqs=512, **options,
    )  # fmt: skip


def variants() -> Iterator[tuple[str, Deployment]]:
    """Aggregated engines."""
    for milliseconds in OVERHEADS_MS:
        yield f"{milliseconds} ms of the host a step", engine(overhead_s=milliseconds / 1000)
    yield "KV in FP8", replace(engine(), precision=Precision.of("fp8_block", "fp8"))
    yield "one scale a matrix", replace(engine(), precision=Precision.of("fp8"))
    yield "steps of 4,096 tokens", engine(max_num_batched_tokens=4096)
    yield "80% of memory", engine(memory_share=0.8)


def aggregated(where: Deployment) -> dict[str, float]:
    """The most that one engine serves within the limits."""
    best, _ = largest(partial(try_load, LOAD, decode=where), LOAD.attainment, 20, where.max_num_seqs)
    assert best, "one user is served in time"
    return {"users": best.users, "output_tokens_per_s_device": best.output_tokens_per_s / where.num_devices}


def disaggregated(milliseconds: float) -> dict[str, float]:
    """Two engines of one device for prompts, and one of two that decodes: the plan's winner."""
    front, back = (engine(tensor, overhead_s=milliseconds / 1000) for tensor in (1, 2))
    attempt = partial(try_load, LOAD, decode=back, prefill=front, prefill_engines=2)
    best, _ = largest(attempt, LOAD.attainment, 50, back.max_num_seqs)
    assert best, "one user is served in time"
    return {"users": best.users, "output_tokens_per_s_device": best.output_tokens_per_s / 4}


def main() -> None:
    """Simulate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/planner_gap.json"))
    args = parser.parse_args()
    console = Console(stderr=True)
    rows = [
        {"what": what} | aggregated(where) for what, where in track(list(variants()), "aggregated", console=console)
    ]
    apart = [{"overhead_ms": each} | disaggregated(each) for each in track(OVERHEADS_MS, "apart", console=console)]
    data = {
        "aggregated": rows, "disaggregated": apart,
        "aiconfigurator": {"aggregated": 438, "disaggregated": 520},
        "its_corrections": {"prefill_latency": 1.1, "decode_latency": 1.08, "prefill_rate": 0.9, "decode_rate": 0.92},
    }  # fmt: skip
    Console().print_json(data=data)
    write_record(args.out, data, "python benchmarks/planner_gap.py", simulated="H200 of the catalogue")


if __name__ == "__main__":
    main()
