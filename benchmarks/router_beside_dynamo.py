"""Our KV-aware router beside NVIDIA Dynamo's, on the same requests: how many prompt tokens each finds in a cache.

Both replay the beginning of the Mooncake conversation trace on eight simulated engines with as many KV blocks: ours in
`simulate`, Dynamo's in its own offline replay (`dynamo.replay`), with its router and its mock engines. The engines'
times are not the same, Dynamo's are its mock engine's own, so latencies compare with the same side's round-robin alone.
Then ours alone, with other weights of the overlap, and on faster engines: of what the difference between them is made.

    python benchmarks/router_beside_dynamo.py TRACE --dynamo-python /path/to/python [--requests 2000]

TRACE is mooncake_conversation_trace.jsonl; the other Python has ai-dynamo. Writes results/router_beside_dynamo.json.
"""

import argparse
import json
import subprocess
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

from rich.progress import track

from miniserve.bench.record import write_record
from miniserve.core.routing import ROUTERS, KVAware, Router
from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.shape import Precision
from miniserve.simulate.cluster import Cluster
from miniserve.simulate.deployment import Deployment, efficiency_for
from miniserve.simulate.models import shape_by_name
from miniserve.workloads.presets import prefix_reuse
from miniserve.workloads.traces import origin, read_trace

ENGINES, BLOCK_SIZE, BUDGET = 8, 64, 2048
BLOCKS = (4000, 10_000, 40_000)  # of each engine
WEIGHTS = (0.5, 1.0, 2.0, 4.0, 8.0)
DEVICES = ("h100", "b200")  # the first one is that of all other points
#: Ours by name, and Dynamo's by its.
ROUTERS_OF = {"ours": ("round-robin", "kv-aware"), "dynamo": ("round_robin", "kv_router")}
THEIRS = """
import json, sys
from importlib.metadata import version
from dynamo.mocker import MockEngineArgs
from dynamo.replay import run_trace_replay
trace, engines, blocks, size, budget, router = sys.argv[1:]
args = MockEngineArgs(num_gpu_blocks=int(blocks), block_size=int(size), max_num_batched_tokens=int(budget))
found = run_trace_replay(
    trace, extra_engine_args=args, router_mode=router, num_workers=int(engines), trace_block_size=512
)
found["version"] = version("ai-dynamo-runtime")
print(json.dumps(found))
"""


def ours(trace: Path, requests: int, blocks: int, router: Router, on: str = DEVICES[0]) -> dict[str, float]:
    """Simulated here."""
    device = load_catalog().accelerator(on)
    engine = Deployment(
        device, shape_by_name("llama-3.1-8b"), Precision.of("bf16", "bf16"), efficiency=efficiency_for(device),
        block_size=BLOCK_SIZE, max_num_batched_tokens=BUDGET,
    )  # fmt: skip
    engine.__dict__["num_blocks"] = blocks  # a cached property: the device would hold another number
    cluster = Cluster([engine] * ENGINES, router=router)
    found = cluster.run(islice(read_trace(trace), requests)).summary(cluster.seconds)
    return {
        "found_share": found["cached_share"],
        "ttft_p50_s": found["ttft_s"]["p50"],
        "ttft_p90_s": found["ttft_s"]["p90"],
    }


def dynamos(python: str, trace: Path, blocks: int, router: str) -> dict[str, Any]:
    """Replayed there."""
    numbers = map(str, (ENGINES, blocks, BLOCK_SIZE, BUDGET))
    command = [python, "-c", THEIRS, str(trace), *numbers, router]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = json.loads(said.splitlines()[-1])
    return {
        "found_share": found["prefix_cache_reused_ratio"],
        "ttft_p50_s": found["median_ttft_ms"] / 1e3,
        "ttft_p90_s": found["p90_ttft_ms"] / 1e3,
        "version": found["version"],
    }


def main() -> None:
    """Replay, and write the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("trace", type=Path)
    parser.add_argument("--dynamo-python", required=True)
    parser.add_argument("--requests", type=int, default=2000)
    args = parser.parse_args()
    points: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        begin = Path(directory) / "begin.jsonl"
        begin.write_text("".join(islice(args.trace.open(encoding="utf-8"), args.requests)), encoding="utf-8")
        found, total = prefix_reuse(read_trace(begin))
        for blocks in BLOCKS:
            for whose, (_, aware) in ROUTERS_OF.items():
                for router in ROUTERS_OF[whose]:
                    measured = (
                        ours(begin, args.requests, blocks, ROUTERS[router]())
                        if whose == "ours"
                        else dynamos(args.dynamo_python, begin, blocks, router)
                    )
                    version = measured.pop("version", None)
                    points.append({"blocks": blocks, "whose": whose, "kv_aware": router == aware} | measured)
                    print(blocks, whose, router, f"{measured['found_share']:.1%} found", flush=True)
        weights = [
            {"device": on, "overlap_weight": weight} | ours(begin, args.requests, BLOCKS[-1], KVAware(weight), on)
            for on in DEVICES
            for weight in track(WEIGHTS, f"weights on {on}")
        ]
    data = {
        "engines": ENGINES,
        "block_size": BLOCK_SIZE,
        "requests": args.requests,
        "trace": origin(args.trace),
        "endless_share": found / total,
        "dynamo": version,
        "points": points,
        "weights": weights,
    }
    command = (
        f"python benchmarks/router_beside_dynamo.py {args.trace.name} --dynamo-python python --requests {args.requests}"
    )
    path = Path(__file__).parents[1] / "results" / "router_beside_dynamo.json"
    write_record(path, data, command, simulated="ours: NVIDIA H100; Dynamo's: its mock engine")


if __name__ == "__main__":
    main()
