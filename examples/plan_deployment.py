"""A deployment question, answered by simulation: how to use two H100s for Qwen3-8B, and what its rush hour is like.

    python examples/plan_deployment.py        # seconds of one core; no GPU and no weights

First a search: which deployment serves most users within the limits. Then the winner under requests that come at
random, at nine tenths of what it served, and at 1.2 times that. Nothing of it is measured: README, "Simulate and plan".
"""

from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.shape import Precision
from miniserve.simulate.build import run
from miniserve.simulate.capacity import Load
from miniserve.simulate.deployment import Deployment, efficiency_for
from miniserve.simulate.models import shape_by_name
from miniserve.simulate.plan import Search
from miniserve.simulate.scenario import Engines, Scenario, Workload
from miniserve.workloads.arrivals import Arrival
from miniserve.workloads.service import SLO

MODEL, DEVICE, LIMITS, PROMPT, OUTPUT = "qwen3-32b", "h100", "ttft:1000,tpot:30", 1024, 128


def main() -> None:
    device = load_catalog().accelerator(DEVICE)
    engine = Deployment(device, shape_by_name(MODEL), Precision.of(), efficiency=efficiency_for(device))
    load = Load([Arrival(0.0, PROMPT, OUTPUT)], SLO.parse(LIMITS), least=32)
    for at in (outcomes := Search(engine, 2, load, weights=["fp8"]).outcomes()):
        print(f"simulated: {at.candidate!s:33} {at.output_tokens_per_s:6,.0f} tokens/s; {at.reason}")
    front, back = outcomes[0].candidate.prefill, outcomes[0].candidate.decode
    pools = [("prefill", front), ("decode", back)] if front else [("both", back)]
    engines = tuple(Engines(DEVICE, each.engines, role, each.tensor, weights="fp8") for role, each in pools)
    for share in (0.9, 1.2):
        rate = share * outcomes[0].output_tokens_per_s / OUTPUT
        asked = Workload(rate=rate, input=str(PROMPT), output=str(OUTPUT), requests=400)
        found = run(Scenario(MODEL, engines, asked, slo=LIMITS)).tally
        print(f"simulated: {rate:4.1f} requests/s: {found.met / found.completed:.0%} within the limits")


if __name__ == "__main__":
    main()
