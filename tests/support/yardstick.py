"""A fixed piece of Python, to hold the cost of other Python against: how fast the machine is, and how busy, cancels out.

It goes over as many objects as there are requests and does a little with each, as the scheduler does, so that caches
and interpreter cost both alike.
"""

import statistics
import time
from itertools import pairwise
from typing import NamedTuple


class _Part(NamedTuple):
    item: "_Item"
    start: int
    count: int


class _Item:
    __slots__ = ("computed", "table", "tokens")

    def __init__(self):
        self.computed, self.tokens, self.table = 0, list(range(1000, 1100)), [0] * 8

    @property
    def remaining(self):
        return len(self.tokens) - self.computed


class Yardstick:
    """As long as `size` objects take."""

    def __init__(self, size):
        self.items = [_Item() for _ in range(size)]

    def run(self):
        parts = []
        for item in self.items:
            if item.remaining > 1 and item.computed < len(item.table) * 16:
                parts.append(_Part(item, item.computed, 1))
        for item, start, _ in parts:
            item.computed = start
            item.tokens.append(start)
            item.tokens.pop()

    def measure(self, work, times=1, pairs=60):
        """CPU time of `work` over that of `run`, each so many times with the other before and behind: the median."""
        found = []
        for _ in range(pairs):
            moments = [time.thread_time()]
            for function in (self.run, work, self.run):
                for _ in range(times):
                    function()
                moments.append(time.thread_time())
            before, middle, behind = (end - start for start, end in pairwise(moments))
            found.append(2 * middle / (before + behind))
        return statistics.median(found)
