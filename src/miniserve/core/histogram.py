"""`Histogram`: counts of values by bucket, and the buckets that the engine's are counted in."""

from bisect import bisect_left
from collections.abc import Sequence

LATENCY_BUCKETS_S = tuple(base * 10.0**power for power in range(-4, 3) for base in (1.0, 2.0, 5.0))
SIZE_BUCKETS = tuple(float(2**power) for power in range(15))


class Histogram:
    """Counts of observed values by bucket.

    Args:
        bounds: upper bounds, ascending, each inclusive; a last bucket takes what is larger than all.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum, self.count = 0.0, 0

    def observe(self, value: float, times: int = 1) -> None:
        """Count one value, as often as it came."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times
        self.count += times

    def add(self, other: "Histogram") -> None:
        """Take in what another one of the same bounds has counted."""
        assert other.bounds == self.bounds, "what is added has the same buckets"
        self.counts = [own + theirs for own, theirs in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum
        self.count += other.count

    @property
    def mean(self) -> float | None:
        """Of all values; None if there were none."""
        return self.sum / self.count if self.count else None
