"""`Window`: which of a simulation's requests count, and from when to when.

The first are a warm-up. The last, where there is a number that counts, keep the load up until those have ended. Both
are served like all others and go into a tally that nobody reads.
"""

import math

from miniserve.simulate.flight import Flight
from miniserve.simulate.tally import Tally
from miniserve.workloads.service import SLO


class Window:
    """Requests by the order in which they came.

    Args:
        slo: what counts as good.
        warmup: the first so many do not count.
        counted: so many after them do; None: all.

    Attributes:
        tally: of those that count.
        began_s: when the first of them came.
        emitted: tokens that steps gave anybody from then on, until the first that counts no more came.
    """

    def __init__(self, slo: SLO, warmup: int = 0, counted: int | None = None) -> None:
        self.tally, self._others = Tally(slo), Tally(slo)
        self._first, self._end = warmup, math.inf if counted is None else warmup + counted
        self._counted = math.inf if counted is None else counted
        self.began_s, self._closed_s = 0.0, math.nan
        self.emitted, self._is_open = 0, False

    def counts(self, serial: int, now_s: float) -> bool:
        """Whether the request that comes now does; its number, from 0."""
        if serial == self._first and serial:
            self.began_s = now_s
        if serial == self._end:
            self._closed_s = now_s
        self._is_open = self._first <= serial < self._end
        return self._first <= serial < self._end

    def give(self, tokens: int) -> None:
        """A step has begun that gives so many, to whomever."""
        self.emitted += tokens if self._is_open else 0

    def tally_of(self, flight: Flight) -> Tally:
        """Where it is counted."""
        return self.tally if flight.counts else self._others

    @property
    def is_over(self) -> bool:
        """Whether all that count have ended."""
        return self.tally.completed + self.tally.rejected.total() >= self._counted

    def seconds(self, now_s: float) -> float:
        """From the first request that counts until now, or to the first that counts no more."""
        return (now_s if math.isnan(self._closed_s) else self._closed_s) - self.began_s
