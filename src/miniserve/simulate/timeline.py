"""`Timeline`: what each engine of a simulation did over time, in memory that does not grow with its length.

Time is cut into slots of one width. When it no longer fits, neighbours are joined, and the width doubles. A slot has
the mean over its time of what is recorded, so that nothing short is lost between samples, and joining is exact.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from miniserve.errors import InvalidRequestError

FIRST_WIDTH_S = 2.0**-10
#: By name, what is recorded of an engine: its queue, its batch, the share of its KV blocks in use, its time computing.
SERIES = ("waiting", "running", "kv", "busy")


class Timeline:
    """Of one cluster.

    Args:
        slots: how many at most; even.

    Example:
        >>> from miniserve.simulate.build import run
        >>> from miniserve.simulate.scenario import Engines, Scenario, Workload
        >>> from miniserve.simulate.timeline import Timeline
        >>> timeline = Timeline()
        >>> _ = run(Scenario("qwen3-8b", (Engines("h100"),), Workload(concurrency=4, requests=8)), timeline)
        >>> float(timeline.series("running").max())
        4.0
    """

    def __init__(self, slots: int = 512) -> None:
        if slots < 2 or slots % 2:
            raise InvalidRequestError(f"a timeline of {slots} slots: it needs an even number of them, 2 at least")
        self.slots, self.width_s = slots, FIRST_WIDTH_S
        self.end_s = 0.0
        self.names: Sequence[str] = ()
        self._sums = np.zeros((0, slots, len(SERIES)))

    def begin(self, names: Sequence[str]) -> None:
        """With these engines."""
        self.names = names
        self._sums = np.zeros((len(names), self.slots, len(SERIES)))

    def add(self, engine: int, begin_s: float, end_s: float, values: tuple[float, float, float, float]) -> None:
        """It was so from then to then: `values` in the order of `SERIES`."""
        while end_s >= self.slots * self.width_s:
            self._join()
        self.end_s = max(self.end_s, end_s)
        sums, width_s = self._sums[engine], self.width_s
        first, last = int(begin_s / width_s), int(end_s / width_s)
        if first == last:
            sums[first] += np.multiply(values, end_s - begin_s)
            return
        sums[first] += np.multiply(values, (first + 1) * width_s - begin_s)
        sums[first + 1 : last] += np.multiply(values, width_s)
        sums[last] += np.multiply(values, end_s - last * width_s)

    def times_s(self) -> npt.NDArray[np.float64]:
        """The middle of each slot up to the end. Shape [n]."""
        return np.arange(0.5, self._used) * self.width_s

    def series(self, name: str) -> npt.NDArray[np.float64]:
        """The means of one of `SERIES`. Shape [engines, n]."""
        widths_s = np.full(self._used, self.width_s)
        if self._used:
            widths_s[-1] = self.end_s - (self._used - 1) * self.width_s
        means: npt.NDArray[np.float64] = self._sums[:, : self._used, SERIES.index(name)] / widths_s
        return means

    @property
    def _used(self) -> int:
        return min(self.slots, math.ceil(self.end_s / self.width_s))

    def _join(self) -> None:
        pairs = self._sums.reshape(len(self.names), self.slots // 2, 2, len(SERIES)).sum(axis=2)
        self._sums = np.concatenate([pairs, np.zeros_like(pairs)], axis=1)
        self.width_s *= 2
