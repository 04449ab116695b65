"""What a tier of KV beside the device is worth, by its bandwidth: simulated, since nobody here owns the hardware.

Qwen3-32B (FP8 weights, bfloat16 KV) on two H100s, with sessions of coding agents that come faster than they can be
served. The KV of every session fits into the tier, so that its bandwidth alone decides. At each one twice: loading
whatever is found, and loading what is faster to load than to compute (core/loading.py).

    python benchmarks/kv_tiers.py --out results/kv_tiers_simulated.json
"""

import argparse
import random
from itertools import islice
from pathlib import Path
from typing import Any

from miniserve.bench.record import write_record
from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.cost import Part
from miniserve.hardware.shape import Parallel, Precision
from miniserve.simulate.cluster import Cluster
from miniserve.simulate.deployment import Deployment, efficiency_for
from miniserve.simulate.models import shape_by_name
from miniserve.simulate.tier_plan import TierPlan
from miniserve.workloads.presets import preset

MODEL, DEVICE, WORKLOAD, DEVICES = "qwen3-32b", "h100", "agentic", 2
GBYTES_PER_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 100.0)
LATENCY_S = 1e-3
SESSIONS_PER_S = 0.05
ENOUGH_BYTES = 1e14


def deployment() -> Deployment:
    """One engine."""
    device = load_catalog()[DEVICE]
    return Deployment(
        device, shape_by_name(MODEL), Precision.of("fp8", "bf16"), Parallel(tensor=DEVICES),
        efficiency=efficiency_for(device), max_model_len=131072,
    )  # fmt: skip


def prompt_seconds(engine: Deployment, num_tokens: int) -> float:
    """How long a prompt takes to compute, in steps of as many tokens as the scheduler puts into one."""
    most = engine.max_num_batched_tokens
    steps = ([Part(at, min(most, num_tokens - at))] for at in range(0, num_tokens, most))
    return sum(map(engine.step_time.seconds, steps))


def serve(engine: Deployment, sessions: int, bandwidth: float | None, *, choose: bool) -> dict[str, Any]:
    """One simulation; without a bandwidth, without a tier."""
    plans = [TierPlan("tier", ENOUGH_BYTES, bandwidth, LATENCY_S)] if bandwidth else []
    cluster = Cluster([engine], tiers=plans, load_if_faster=choose)
    tally = cluster.run(islice(preset(WORKLOAD, random.Random(0), SESSIONS_PER_S), sessions))
    found = tally.summary(cluster.seconds)
    ttft = found["ttft_s"]
    return {
        "gbytes_per_s": bandwidth and bandwidth / 1e9,
        "output_tokens_per_s": found["output_tokens_per_s"],
        "ttft_s_p50": ttft["p50"],
        "ttft_s_p90": ttft["p90"],
        "cached_share": found["cached_share"],
        "loaded_share": found["loaded_shares"].get("tier", 0.0),
    }


def main() -> None:
    """Run the ladder of bandwidths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=12)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    engine = deployment()
    data: dict[str, Any] = {
        "model": MODEL, "workload": WORKLOAD, "sessions": arguments.sessions, "sessions_per_s": SESSIONS_PER_S,
        "pool_tokens": engine.num_blocks * engine.block_size, "kv_bytes_per_token": engine.kv_sent_bytes,
        "prompt_s": {tokens: prompt_seconds(engine, tokens) for tokens in (1024, 8192, 32768, 65536)},
        "nothing": serve(engine, arguments.sessions, None, choose=False),
    }  # fmt: skip
    for name, choose in (("always", False), ("faster", True)):
        data[name] = [serve(engine, arguments.sessions, each * 1e9, choose=choose) for each in GBYTES_PER_S]
        for row in data[name]:
            print(name, row, flush=True)
    if arguments.out:
        command = f"python benchmarks/kv_tiers.py --sessions {arguments.sessions}"
        write_record(arguments.out, data, command, simulated=f"{DEVICES} x {engine.device.name}")


if __name__ == "__main__":
    main()
