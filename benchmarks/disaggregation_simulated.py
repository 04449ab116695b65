"""Where prefill and decode apart is worth it, on GPUs: goodput against load, simulated.

Four GPUs with an 8-billion-parameter model each, one engine a GPU: all four do everything, with step budgets from small
to large; or one or two of them compute prompts alone. Traffic as in the two traces of Azure, one of talks and one
of code, comes at several rates, with one promise or another. The same seed everywhere; the scheduler is the real one.

    python benchmarks/disaggregation_simulated.py [--requests 300]

writes results/disaggregation_simulated.json; some minutes.
"""

import argparse
import random
from itertools import islice
from pathlib import Path
from typing import Any

from rich.progress import track

from miniserve.bench.record import write_record
from miniserve.core.routing import LeastLoaded
from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.shape import Precision
from miniserve.simulate.cluster import Cluster
from miniserve.simulate.deployment import Deployment, efficiency_for
from miniserve.simulate.models import shape_by_name
from miniserve.simulate.storage import Link
from miniserve.workloads.presets import preset
from miniserve.workloads.service import SLO

MODEL, HARDWARE, GPUS, LINK_BYTES_PER_S = "llama-3.1-8b", "h100", 4, 50e9
PROMPT_BUDGET = 8192  # of an engine for prompts: nobody decodes there
#: Name: engines for prompts, and the token budget of those that decode.
SPLITS = {
    "together, 512": (0, 512),
    "together, 2048": (0, 2048),
    "together, 8192": (0, 8192),
    "1 + 3 apart": (1, 2048),
    "2 + 2 apart": (2, 2048),
}
#: Scenario: traffic, what its users were promised, and rates of all four GPUs together.
SCENARIOS = {
    "conv, 10 ms a token": ("azure-conv", "ttft:500,tpot:10", (15, 30, 45, 60)),
    "conv, no gap over 25 ms": ("azure-conv", "ttft:500,itl:25", (15, 30, 45, 60)),
    "code, 10 ms a token": ("azure-code", "ttft:1000,tpot:10", (5, 10, 20, 30)),
}


def deployment(budget: int) -> Deployment:
    """One GPU's engine."""
    device = load_catalog().accelerator(HARDWARE)
    precision = Precision.of("bf16", "bf16")
    efficiency = efficiency_for(device)
    return Deployment(device, shape_by_name(MODEL), precision, efficiency=efficiency, max_num_batched_tokens=budget)


def simulate(scenario: str, split: str, rate: float, requests: int) -> dict[str, Any]:
    """One point."""
    prefill, budget = SPLITS[split]
    workload, slo, _ = SCENARIOS[scenario]
    cluster = Cluster(
        [deployment(budget)] * (GPUS - prefill),
        router=LeastLoaded(),
        slo=SLO.parse(slo),
        prefill=[deployment(PROMPT_BUDGET)] * prefill,
        make_link=lambda: Link(LINK_BYTES_PER_S, 1e-4),
        prefix_caching=False,
    )
    cluster.run(islice(preset(workload, random.Random(0), rate), requests))
    found = cluster.tally.summary(cluster.seconds)
    return {
        "scenario": scenario,
        "split": split,
        "rate_per_s": rate,
        "slo_attainment": found["slo_attainment"],
        "goodput_per_s": rate * found["slo_attainment"],
        "ttft_p90_s": found["ttft_s"]["p90"],
        "itl_p99_s": found["itl_s"]["p99"],
        "tpot_p90_s": found["tpot_s"]["p90"],
        "output_tokens_per_s": found["output_tokens_per_s"],
    }


def main() -> None:
    """Simulate, and write the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=300)
    requests = parser.parse_args().requests
    points = [
        (scenario, split, rate) for scenario, (_, _, rates) in SCENARIOS.items() for rate in rates for split in SPLITS
    ]
    data = {
        "model": MODEL,
        "hardware": HARDWARE,
        "gpus": GPUS,
        "requests": requests,
        "link_bytes_per_s": LINK_BYTES_PER_S,
        "promises": {scenario: slo for scenario, (_, slo, _) in SCENARIOS.items()},
        "points": [simulate(*point, requests) for point in track(points, "simulating")],
    }
    command = f"python benchmarks/disaggregation_simulated.py --requests {requests}"
    path = Path(__file__).parents[1] / "results" / "disaggregation_simulated.json"
    write_record(path, data, command, simulated=f"{GPUS} x {load_catalog().accelerator(HARDWARE).name}")
    for point in data["points"]:
        print(
            f"{point['scenario']:24} {point['split']:15} {point['rate_per_s']:>3}/s: "
            f"good {point['slo_attainment']:.0%}, "
            f"TTFT p90 {point['ttft_p90_s']:.2f} s, ITL p99 {point['itl_p99_s'] * 1e3:.0f} ms"
        )


if __name__ == "__main__":
    main()
