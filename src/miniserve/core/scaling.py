"""`Planner`: how many engines of each kind a load needs. Pure: simulated clusters and real fleets act on the same.

Once an interval it is told what came in it, and says how many engines for prompts and how many that decode are wanted.
What a load needs is a fraction of engines, by what one engine does within the users' limits (`Capacity`). The count
follows that through a band: as many as this interval needed at the least, and at the most as many as the neediest of
the last `hold` intervals, with a margin. So it goes up at once, and down only when the load has fitted for a while.

Invariants: a count is never below its least or above its most; it is enough for the load of the last interval, unless
that takes more than the most; under a load that varies by less than the margin no count goes up after it went down.
It does not guess what will come, and does not start or stop anything.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from miniserve.errors import InvalidRequestError


class Counts(NamedTuple):
    """Engines: those for prompts, and those that decode. Without any of the first, the others do everything."""

    prefill: int
    decode: int


class Observed(NamedTuple):
    """A load: what came in an interval, and what there was at its end.

    Attributes:
        seconds: how long it was.
        requests: that came.
        prompt_tokens: theirs.
        missing_tokens: of these, the ones that engines for prompts have to compute.
        waiting_tokens: of all prompts that are there, those that are still to be computed so.
        decoding: outputs that engines which decode have.
        output_tokens: mean of an output, as far as is known.
    """

    seconds: float
    requests: int
    prompt_tokens: int
    missing_tokens: int
    waiting_tokens: float
    decoding: int
    output_tokens: float


class Capacity(NamedTuple):
    """What one engine does within the limits.

    Attributes:
        prompt_tokens_per_s: that an engine for prompts computes.
        seats: outputs that one which decodes has at once.
        token_s: how long each of these waits for its next token then.
    """

    prompt_tokens_per_s: float
    seats: float
    token_s: float


class Need(NamedTuple):
    """Engines that a load would keep busy, of each kind; a count of them need not be whole."""

    prefill: float
    decode: float


def need(observed: Observed, capacity: Capacity) -> Need:
    """Of a load.

    Prompts: in the next interval as many come, and those that wait are to be computed, too. Outputs: as many at once
    as arrive while one of them is decoded (Little's law), or as there are, if these are more.
    """
    prompts = (observed.missing_tokens + observed.waiting_tokens) / observed.seconds
    seats = max(observed.decoding, observed.requests / observed.seconds * observed.output_tokens * capacity.token_s)
    return Need(_ratio(prompts, capacity.prompt_tokens_per_s), _ratio(seats, capacity.seats))


class Planner:
    """The policy, and the intervals that it remembers.

    Args:
        capacity: of an engine, under a load.
        least, most: bounds of the counts.
        hold: so many intervals must have fitted fewer engines before there are fewer.
        margin: by so much more than they had must fit.

    Raises:
        InvalidRequestError: a bound or a number makes no sense.

    Example:
        >>> from miniserve.core.scaling import Capacity, Counts, Observed, Planner
        >>> planner = Planner(lambda load: Capacity(10_000, seats=32, token_s=0.02), Counts(1, 1), Counts(8, 8))
        >>> minute = Observed(
        ...     seconds=60, requests=600, prompt_tokens=1_200_000, missing_tokens=1_200_000, waiting_tokens=0,
        ...     decoding=40, output_tokens=200,
        ... )
        >>> planner.wanted(minute, current=Counts(1, 1))
        Counts(prefill=2, decode=2)
    """

    def __init__(
        self,
        capacity: Callable[[Observed], Capacity],
        least: Counts,
        most: Counts,
        *,
        hold: int = 10,
        margin: float = 0.2,
    ) -> None:
        if not (0 <= least.prefill <= most.prefill and 1 <= least.decode <= most.decode):
            raise InvalidRequestError(f"a planner between {least} and {most}: at least 1 decodes, and least <= most")
        if hold < 1 or not 0 <= margin < math.inf:
            raise InvalidRequestError(f"hold is {hold}: 1 at least; margin is {margin}: 0 at least, and finite")
        self._capacity, self.least, self.most, self._margin = capacity, least, most, margin
        self._needs: deque[Need] = deque(maxlen=hold)

    def wanted(self, observed: Observed, current: Counts) -> Counts:
        """After an interval.

        Args:
            observed: its load.
            current: engines that run or are being started.
        """
        self._needs.append(need(observed, self._capacity(observed)))
        return Counts(*(self._count(kind, now) for kind, now in enumerate(current)))

    def _count(self, kind: int, now: int) -> int:
        needs = [each[kind] for each in self._needs]
        least, most = self.least[kind], self.most[kind]
        count = max(now, math.ceil(min(needs[-1], most)))
        if len(needs) == self._needs.maxlen:
            count = min(count, math.ceil(min(max(needs) * (1 + self._margin), most)))
        return min(max(count, least), most)


class Meter:
    """What came and what ended, counted as it happens; `read` gives an interval's load, and begins the next one."""

    def __init__(self) -> None:
        self._output_tokens = 0.0
        self._begin()

    def _begin(self) -> None:
        self._requests = self._prompt_tokens = self._missing_tokens = self._ended = self._ended_tokens = 0

    def came(self, prompt_tokens: int, missing_tokens: int) -> None:
        """A request: its prompt, and what of it an engine for prompts is to compute."""
        self._requests += 1
        self._prompt_tokens += prompt_tokens
        self._missing_tokens += missing_tokens

    def ended(self, output_tokens: int) -> None:
        """An output is complete, with so many tokens."""
        self._ended += 1
        self._ended_tokens += output_tokens

    def read(self, seconds: float, waiting_tokens: float, decoding: int) -> Observed:
        """See `Observed`. While nothing ends, outputs are taken to be as long as those that ended before."""
        if self._ended:
            self._output_tokens = self._ended_tokens / self._ended
        observed = Observed(
            seconds, self._requests, self._prompt_tokens, self._missing_tokens, waiting_tokens, decoding,
            self._output_tokens,
        )  # fmt: skip
        self._begin()
        return observed


def _ratio(work: float, rate: float) -> float:
    return work / rate if rate else math.inf if work else 0.0
