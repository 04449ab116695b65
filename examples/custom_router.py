"""A router of one's own, judged against miniserve's on four simulated H100s: the same sessions, the same engines.

    python examples/custom_router.py          # seconds of one core; no GPU and no weights

A `Router` is one method. The simulator and `miniserve serve` ask routers of this form, so that a policy can be tried
before it meets a user. This one sends prompts that begin alike to one engine, unless that has too much to do.
"""

import random
from collections.abc import Sequence
from itertools import islice

from miniserve.core.hashing import BlockHash
from miniserve.core.routing import ROUTERS, EngineView, Router
from miniserve.simulate.build import deployment_of
from miniserve.simulate.cluster import Cluster
from miniserve.simulate.scenario import Engines
from miniserve.workloads.presets import preset


class ByPrefix:
    """Where the hash of a prompt's first 16 blocks says; the idlest engine, if it has eight requests fewer."""

    def choose(self, hashes: Sequence[BlockHash], block_size: int, engines: Sequence[EngineView]) -> int:  # noqa: ARG002
        loads = [engine.load.num_requests for engine in engines]
        home = int.from_bytes(hashes[:16][-1]) % len(engines) if hashes else 0
        return home if loads[home] < min(loads) + 8 else loads.index(min(loads))


def main() -> None:
    engine = deployment_of("qwen3-8b", Engines("h100", weights="fp8"))
    routers: dict[str, Router] = {name: make() for name, make in ROUTERS.items()} | {"by-prefix": ByPrefix()}
    for name, router in routers.items():
        found = Cluster([engine] * 4, router=router).run(islice(preset("rag", random.Random(0), rate_per_s=1.0), 60))
        cached, p50, p99 = found.cached_tokens / found.prompt_tokens, *map(found.ttft.percentile, (50, 99))
        print(f"simulated: {name:12} {cached:4.0%} of prompts cached, first token: p50 {p50:.2f} s, p99 {p99:.2f} s")


if __name__ == "__main__":
    main()
