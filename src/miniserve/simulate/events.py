"""`Events`: what will happen in a simulation, in order of time; of one moment, in the order in which it was said."""

import heapq
import math
from collections.abc import Callable
from itertools import count


class Events:
    """A queue, and the present. It is true while something is in it that has to happen.

    Attributes:
        now_s: when what happens at last did.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._order = count()
        self._queue: list[tuple[float, int, Callable[[], None], bool, bool]] = []
        self._shared: list[float] = []
        self._num_needed = 0

    def __bool__(self) -> bool:
        return self._num_needed > 0

    @property
    def next_s(self) -> float:
        """When the next one happens; infinite if there is none."""
        return self._queue[0][0] if self._queue else math.inf

    @property
    def next_shared_s(self) -> float:
        """When the next one happens that may concern more than one engine; infinite if there is none."""
        return self._shared[0] if self._shared else math.inf

    def at(self, when_s: float, happen: Callable[[], None], *, needed: bool = True, shared: bool = True) -> None:
        """At that moment, call `happen`.

        Args:
            when_s: then.
            happen: what to do.
            needed: or else only if something else is still to happen then.
            shared: or else it concerns one engine alone.
        """
        self._num_needed += needed
        heapq.heappush(self._queue, (when_s, next(self._order), happen, needed, shared))
        if shared:
            heapq.heappush(self._shared, when_s)

    def happen(self) -> None:
        """The next one does."""
        self.now_s, _, happen, needed, shared = heapq.heappop(self._queue)
        self._num_needed -= needed
        if shared:
            heapq.heappop(self._shared)  # what happens is the earliest, so this is its time
        happen()
