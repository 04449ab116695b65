"""`Launcher`: has as many of a fleet's engines run as its load needs, on this machine: a `Planner`'s hands.

Once an interval it asks the planner. An engine that is wanted is a new process, and is in the fleet when its model is
loaded. One that is not takes nothing more from then on, ends what it has, KV that it keeps for others included, and
only then does its process end: no output notices. Orders that are being carried out are not taken back.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine
from itertools import count

from miniserve.core.scaling import Capacity, Counts, Planner
from miniserve.errors import InvalidRequestError, MiniserveError
from miniserve.server.engine_client import EngineClient
from miniserve.server.fleet.member import Member
from miniserve.server.fleet.pools import Pools

LOOK_S = 0.05  # while a member ends what it has

#: Starts an engine, and has it among those of a list.
Join = Callable[[Member, list[Member]], Awaitable[None]]

logger = logging.getLogger(__name__)


def parse_capacity(text: str) -> Capacity:
    """`2000:8:40`: prompt tokens a second, outputs at once, and milliseconds a token then, of one engine.

    Raises:
        InvalidRequestError: it is not.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?):(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)", text, re.ASCII)
    numbers = [float(each) for each in found.groups()] if found else []
    if not found or min(numbers) <= 0:
        message = f"capacity '{text}' is not TOKENS_PER_S:OUTPUTS:MS of one engine, all above 0, such as 2000:8:40"
        raise InvalidRequestError(message)
    return Capacity(numbers[0], numbers[1], numbers[2] / 1000)


def parse_range(text: str, least: int) -> tuple[int, int]:
    """`2`, or `1-3`: engines, at least and at most. Raises InvalidRequestError if it is none, or below `least`."""
    found = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", text, re.ASCII)
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (-1, -1)
    if not least <= low <= high:
        raise InvalidRequestError(f"engines '{text}' are neither N nor LOW-HIGH, {least} at least, such as 1-3")
    return low, high


class Launcher:
    """Of one fleet.

    Args:
        planner: says how many.
        make: a client for one more engine, not started.
        interval_s: between two looks.
    """

    def __init__(self, planner: Planner, make: Callable[[], EngineClient], interval_s: float) -> None:
        self._planner, self._make, self._interval_s = planner, make, interval_s
        self._numbers = [count(self._planner.least.prefill), count(self._planner.least.decode)]
        self._coming: tuple[set[Member], set[Member]] = set(), set()
        self._going: set[Member] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, pools: Pools, join: Join) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            self._look(pools, join)

    async def stop(self) -> None:
        """End what is being started, and what is about to go."""
        for task in self._tasks:
            task.cancel()
        members = [*self._coming[0], *self._coming[1], *self._going]
        await asyncio.gather(*(member.client.stop() for member in members))

    def _look(self, fleet: Pools, join: Join) -> None:
        waiting = sum(member.load.prompt_tokens for member in fleet.prefill)
        decoding = sum(member.load.num_requests for member in fleet.decode)
        observed, pools = fleet.meter.read(self._interval_s, waiting, decoding), (fleet.prefill, fleet.decode)
        now = Counts(*(len(pool) + len(coming) for pool, coming in zip(pools, self._coming, strict=True)))
        wanted = self._planner.wanted(observed, now)
        if wanted != now:
            logger.info("engines", extra={"from": list(now), "to": list(wanted)})
        for kind, pool in enumerate(pools):
            for _ in range(wanted[kind] - now[kind]):
                self._begin(self._add(kind, pool, join))
            spare = min(now[kind] - wanted[kind], len(pool) - self._planner.least[kind])
            for member in sorted(pool, key=lambda each: each.load.num_requests)[: max(0, spare)]:
                pool.remove(member)
                self._begin(self._let_go(member))

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _add(self, kind: int, pool: list[Member], join: Join) -> None:
        member = Member(f"{('prefill', 'decode')[kind]} {next(self._numbers[kind])}", self._make())
        self._coming[kind].add(member)
        try:
            await join(member, pool)
        except MiniserveError as error:
            logger.error("an engine could not be started", extra={"reason": str(error)})
            await member.client.stop()
        self._coming[kind].discard(member)

    async def _let_go(self, member: Member) -> None:
        self._going.add(member)
        while member.load.num_requests:
            await asyncio.sleep(LOOK_S)
        await member.client.stop()
        self._going.discard(member)
