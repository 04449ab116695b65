"""`SharedLoad`: what users ask where prompts begin as earlier ones did, so that KV can be found.

A user is a session, whose turns follow one another, each when the last has been answered and a pause is over; or, where
a load has no sessions, somebody who asks again at once. The stream has no end and repeats no name: what is found has
been asked by that session, or is what several share. A session stays with one group of engines, so that a group which
is simulated alone finds what it would among others; of what sessions share, all comes to it.

What an endless cache would find bounds what any memory can: it is counted from a sample, once.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, count, islice

from miniserve.simulate.capacity import Load
from miniserve.workloads.arrivals import Arrival
from miniserve.workloads.presets import with_turns
from miniserve.workloads.service import SLO

SAMPLE = 2048  # requests
FEW = 64  # of these, what is found says nothing yet
SETTLED = 0.05  # of prompts' tokens: as near as what is found must have come to what is found later


@dataclass(frozen=True)
class SharedLoad(Load):
    """As `Load`, whose `requests` are a sample here.

    Args:
        draw: begins the stream anew: sessions, or requests, without end, always the same.
    """

    draw: Callable[[], Iterator[Arrival]] = field(kw_only=True)

    @classmethod
    def of(cls, draw: Callable[[], Iterator[Arrival]], slo: SLO, attainment: float, least: int) -> "SharedLoad":
        """With a sample from the stream."""
        sample = list(islice(with_turns(draw(), SAMPLE), SAMPLE))
        return cls(sample, slo, attainment, least, draw=draw)

    @property
    def shares(self) -> bool:
        """Whether anything can be found."""
        return self.found > 0

    @property
    def user(self) -> str:
        """What is there so many times at once."""
        return "session" if any(each.then for each in self.requests) else "user"

    @cached_property
    def _found(self) -> list[int]:
        """Tokens of each prompt of the sample that an endless cache would have."""
        seen: dict[int, int] = {}  # tokens of each block: a prompt may end within its last
        found = []
        for each in self.requests:
            here, known = 0, True
            for at, name in enumerate(each.blocks):
                size = min(each.block_size, each.prompt_tokens - at * each.block_size)
                before = seen.get(name, 0)
                here += min(before, size) if known else 0
                known = known and before == each.block_size
                seen[name] = max(before, size)
            found.append(min(here, each.prompt_tokens - 1))
        return found

    @property
    def found(self) -> int:
        """Mean tokens of a prompt that an endless cache would have."""
        return round(sum(self._found) / len(self._found))

    @property
    def easiest(self) -> int:
        """As of `Load`, of what is left of each prompt at least."""
        left = sorted(each.prompt_tokens - found for each, found in zip(self.requests, self._found, strict=True))
        return left[math.ceil(self.attainment * len(left)) - 1]

    @cached_property
    def settling(self) -> int:
        """Requests after which an endless cache finds about as much as it does later: caches begin empty."""
        half = len(self.requests) // 2
        later, first = self._share(half, len(self.requests)), FEW
        while first < half and self._share(first, 2 * first) < later - SETTLED:
            first *= 2
        return first

    def _share(self, first: int, end: int) -> float:
        """Of these prompts' tokens, what is found."""
        return sum(self._found[first:end]) / sum(each.prompt_tokens for each in self.requests[first:end])

    def warmup(self, users: int) -> int:
        """Of `Load`."""
        return max(super().warmup(users), self.settling)

    def counted(self, users: int) -> int:
        """Of `Load`: one of each, since sessions are of all ages at once."""
        return max(users, self.least)

    def arrivals(self, users: int) -> Iterator[Arrival]:
        """Without end. The first sessions are joined as they are found under way: of all ages, and more often long."""
        stream = self.draw()
        return chain(list(islice(self._under_way(stream), users)), stream)

    def _under_way(self, stream: Iterator[Arrival]) -> Iterator[Arrival]:
        """Turns that lie evenly in the row of all turns, so far apart that no two are of one session."""
        passed, wanted = 0, self._longest // 2
        for session in stream:
            turns = list(with_turns(iter([session]), 1))
            if wanted < passed + len(turns):
                yield turns[wanted - passed]
                wanted = max(wanted + self._longest, passed + len(turns))
            passed += len(turns)

    @cached_property
    def _longest(self) -> int:
        """Turns of a session of the sample."""
        longest = turns = 1
        for each in self.requests:
            longest, turns = max(longest, turns), turns + 1 if each.then else 1
        return longest


def passes(requests: Sequence[Arrival]) -> Iterator[Arrival]:
    """A trace's requests again and again, each time with fresh names of blocks."""
    names = 1 + max((name for each in requests for name in each.blocks), default=0)
    for turn in count():
        for each in requests:
            yield each._replace(at_s=0.0, blocks=tuple(name + turn * names for name in each.blocks))
