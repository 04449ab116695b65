"""A bursty day, simulated: engines for its mean, for its peak, and a planner's; and routers on workloads with prefixes.

The day is synthetic, and in time lapse: its 24 hours pass in six, with bursts of twice as much for some minutes. Each
engine is eight H100s with Llama 3.1 405B. The fixed counts are what the planner's own arithmetic says of the day's mean
rate, and of its highest one. The routers have eight H100s with an 8B each. The same seed everywhere; the scheduler is
the real one.

    python benchmarks/orchestration_simulated.py [--jobs 2]

writes results/orchestration_simulated.json; some minutes.
"""

import argparse
import math
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import islice, pairwise, takewhile
from pathlib import Path
from statistics import mean
from typing import Any

from miniserve.bench.record import write_record
from miniserve.core.routing import ROUTERS, LeastLoaded
from miniserve.core.scaling import Observed, need
from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.shape import Parallel, Precision
from miniserve.simulate.cluster import Cluster
from miniserve.simulate.deployment import Deployment, efficiency_for
from miniserve.simulate.models import shape_by_name
from miniserve.simulate.rates import EngineRates
from miniserve.simulate.report import report
from miniserve.simulate.scaling import Scaling
from miniserve.simulate.storage import Link
from miniserve.workloads.arrivals import Arrival
from miniserve.workloads.day import Day
from miniserve.workloads.presets import PRESETS, preset
from miniserve.workloads.service import SLO

HARDWARE, LINK_BYTES_PER_S = "h100", 400e9
LIMITS, ATTAINMENT = "ttft:5000,tpot:40", 0.95
DAY_S = 6 * 3600.0
MOST = 6, 6  # engines that the planner may have
EVERY_S = 180.0  # of what it did, that is kept
#: Workload: rate of its sessions, and how many of them.
ROUTED = {"rag": (4.0, 150), "chat": (30.0, 150)}


def engine(name: str, tensor: int, weights: str, budget: int = 2048) -> Deployment:
    """One."""
    device = load_catalog().accelerator(HARDWARE)
    precision, parallel = Precision.of(weights, "bf16"), Parallel(tensor=tensor)
    return Deployment(
        device, shape_by_name(name), precision, parallel, efficiency_for(device), max_num_batched_tokens=budget
    )


def the_day() -> Day:
    """In time lapse."""
    made = PRESETS["day"]
    assert isinstance(made, Day), "it is one"
    return replace(made, day_s=DAY_S)


def arrivals() -> Iterator[Arrival]:
    """Of the day."""
    made = the_day()
    return takewhile(lambda each: each.at_s < DAY_S, made.arrivals(random.Random(0), made.rate_per_s))


def fixed(rate_per_s: float) -> tuple[int, int]:
    """Engines for a rate, by the planner's arithmetic: for prompts, and to decode."""
    some = list(islice(preset("day", random.Random(1)), 5000))
    prompt = round(sum(each.prompt_tokens for each in some) / len(some))
    output = sum(each.output_tokens for each in some) / len(some)
    requests = round(rate_per_s * 3600)
    observed = Observed(3600.0, requests, requests * prompt, requests * prompt, 0, 0, output)
    decode = engine("llama-3.1-405b", 8, "fp8")
    rates = EngineRates(decode, replace(decode, max_num_batched_tokens=8192), SLO.parse(LIMITS), ATTAINMENT)
    needed = need(observed, rates(observed))
    return math.ceil(needed.prefill), math.ceil(needed.decode)


def day(counts: tuple[int, int], scaling: Scaling | None) -> dict[str, Any]:
    """Of so many engines, or of at most so many."""
    decode = engine("llama-3.1-405b", 8, "fp8")
    cluster = Cluster(
        [decode] * counts[1],
        router=LeastLoaded(),
        slo=SLO.parse(LIMITS),
        prefill=[replace(decode, max_num_batched_tokens=8192)] * counts[0],
        make_link=lambda: Link(LINK_BYTES_PER_S, 1e-4),
        prefix_caching=False,
        scaling=scaling,
    )
    cluster.run(arrivals())
    found, looks = report(cluster), cluster.scaler.looks if cluster.scaler else []
    changes = sum(one.wanted != two.wanted for one, two in pairwise(looks))
    every = max(1, round(EVERY_S / scaling.interval_s)) if scaling else 1
    return {
        "prefill": counts[0],
        "decode": counts[1],
        "requests": found["completed"],
        "slo_attainment": found["slo_attainment"],
        "ttft_s": found["ttft_s"],
        "tpot_s": found["tpot_s"],
        "gpu_hours": found["device_hours"],
        "utilisation": sum(found["utilisation"].values()) / len(found["utilisation"]),
        "changes": changes,
        "over_time": [
            {
                "at_s": some[-1].at_s,
                "requests_per_s": mean(each.observed.requests / each.observed.seconds for each in some),
                "prefill": mean(each.paid.prefill for each in some),
                "decode": mean(each.paid.decode for each in some),
            }
            for some in (looks[at : at + every] for at in range(0, len(looks), every))
        ],
    }  # fmt: skip


def routed(workload: str, router: str) -> dict[str, Any]:
    """One workload behind one router."""
    rate, sessions = ROUTED[workload]
    cluster = Cluster(
        [engine("llama-3.1-8b", 1, "bf16")] * 8, router=ROUTERS[router](), slo=SLO.parse("ttft:1000,tpot:30")
    )
    cluster.run(islice(preset(workload, random.Random(0), rate), sessions))
    found = report(cluster)
    names = ("completed", "cached_share", "ttft_s", "tpot_s", "slo_attainment")
    return {"workload": workload, "router": router} | {name: found[name] for name in names}


def main() -> None:
    """Simulate, and write the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    made = the_day()
    highest = made.calm_rate(made.peak * DAY_S, made.rate_per_s) * made.times
    counts = {"fixed, for the mean": fixed(made.rate_per_s), "fixed, for the peak": fixed(highest)}
    with ProcessPoolExecutor(args.jobs) as pool:
        days = {"planner": pool.submit(day, MOST, Scaling(attainment=ATTAINMENT))}
        days |= {name: pool.submit(day, each, None) for name, each in counts.items()}
        routes = [pool.submit(routed, workload, router) for workload in ROUTED for router in ROUTERS]
        data = {
            "limits": LIMITS,
            "day_s": DAY_S,
            "mean_per_s": made.rate_per_s,
            "highest_per_s": highest,
            "start_s": Scaling().start_s,
            "day": {name: each.result() for name, each in days.items()},
            "routers": [each.result() for each in routes],
        }
    command = "python benchmarks/orchestration_simulated.py"
    path = Path(__file__).parents[1] / "results" / "orchestration_simulated.json"
    write_record(path, data, command, simulated=load_catalog().accelerator(HARDWARE).name)
    for name, each in data["day"].items():
        hours, changes = each["gpu_hours"], each["changes"]
        print(f"{name:20} {each['slo_attainment']:.1%} in time, {hours:,.0f} GPU hours, {changes} changes")


if __name__ == "__main__":
    main()
