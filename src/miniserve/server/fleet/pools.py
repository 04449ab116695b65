"""`Pools`: which engine of a fleet computes what.

Two pools, one for prompts and one for what follows. All engines are alike: the pools say what each is for as long as
others are there, and an engine of one pool does the other's work while nobody else can.
"""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from miniserve.core.disaggregation import Disaggregation
from miniserve.core.hashing import BlockHash
from miniserve.core.routing import Router
from miniserve.core.scaling import Meter
from miniserve.server.errors import unavailable
from miniserve.server.fleet.member import Member
from miniserve.server.fleet.output import Output

RECOVERY_S = 60.0  # how long an output waits for an engine to come back
LOOK_S = 0.05


class Chosen(NamedTuple):
    """An engine, and how many of an output's tokens have no KV there."""

    member: Member
    num_missing: int


class Pools:
    """The engines of a fleet.

    Args:
        prefill: for prompts; may be none.
        decode: for what follows.
        rule: which prompts are computed apart.
        prefill_router, decode_router: choose within a pool.

    Attributes:
        prefill, decode: who there is; engines may come and go.
        meter: is told of each output that comes and ends.
    """

    def __init__(
        self,
        prefill: Sequence[Member],
        decode: Sequence[Member],
        rule: Disaggregation,
        prefill_router: Router,
        decode_router: Router,
    ) -> None:
        self.prefill, self.decode, self._rule = list(prefill), list(decode), rule
        self._routers = prefill_router, decode_router
        self.meter = Meter()

    async def for_decode(self, output: Output) -> Chosen:
        """Who is to go on with an output in the end.

        Raises:
            APIError: of 503: every engine is gone, and none came back in time.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + RECOVERY_S
        while not (up := _ready(self.decode) or _ready(self.prefill)):
            if loop.time() > deadline_s:
                raise unavailable(f"every engine is gone, and none came back within {RECOVERY_S:.0f} s")
            await asyncio.sleep(LOOK_S)
        return _choose(up, self._routers[1], output)

    def for_prefill(self, output: Output, there: Chosen) -> Chosen | None:
        """Who computes the tokens first that are missing `there`; None: nobody, it stays there. It is metered."""
        cached = output.num_tokens - there.num_missing
        up, chosen = _ready(self.prefill), None
        if up and there.member not in up and self._rule.is_apart(output.num_tokens, cached, output.params):
            chosen = _choose(up, self._routers[0], output)
        self.meter.came(output.num_tokens, chosen.num_missing if chosen else 0)
        return chosen


def _ready(members: Sequence[Member]) -> list[Member]:
    return [member for member in members if member.client.ready]


def _choose(members: Sequence[Member], router: Router, output: Output) -> Chosen:
    facts = members[0].client.facts  # alike in all
    hashes: list[BlockHash] = output.hashes(facts.block_size, facts.model_key) if facts.prefix_caching else []
    member = members[router.choose(hashes, facts.block_size, members)]
    return Chosen(member, output.num_tokens - facts.block_size * member.cached_blocks(hashes))
