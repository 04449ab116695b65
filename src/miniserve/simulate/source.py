"""`Source`: where a simulation's requests come from: at their own times, or each when another one has ended."""

import math
from collections.abc import Iterator

from miniserve.workloads.arrivals import Arrival


class Source:
    """Arrivals in order.

    Args:
        arrivals: what there is.
        is_closed: they come when one has ended, whatever their times.
    """

    def __init__(self, arrivals: Iterator[Arrival], is_closed: bool = False) -> None:
        self._arrivals, self.is_closed = arrivals, is_closed
        self._next = None if is_closed else next(arrivals, None)

    @property
    def next_s(self) -> float:
        """When the next one comes by itself; infinite if none does."""
        return self._next.at_s if self._next else math.inf

    def take(self) -> Arrival:
        """The one that comes by itself."""
        arrival, self._next = self._next, next(self._arrivals, None)
        assert arrival, "one was announced"
        return arrival

    def another(self, now_s: float) -> Arrival | None:
        """One that comes now, since another has ended; None in an open loop, and where there are no more."""
        arrival = next(self._arrivals, None) if self.is_closed else None
        return arrival._replace(at_s=now_s) if arrival else None
