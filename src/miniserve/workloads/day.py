"""`Day`: requests whose rate goes up and down with the hours, and in bursts: what a planner is for. Synthetic.

The hours are a cosine from a low at night to a peak, the bursts a two-state process: calm, or for some minutes so
many times as much (a Markov-modulated Poisson process). Both are made up, and no more than plausible.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from miniserve.errors import InvalidRequestError
from miniserve.workloads.arrivals import Arrival, Lengths, drawn

DAY_S = 86400.0


@dataclass(frozen=True)
class Day:
    """Requests that have nothing to do with one another.

    Attributes:
        prompts, outputs: tokens.
        rate_per_s: mean of the day.
        night: the lowest rate, half a day from the peak, as a share of the peak's.
        peak: when the highest rate is: the share of the day that has passed since midnight, when it begins.
        bursts: in a day; 0 or more.
        times: as much comes in a burst; 1 or more.
        burst_s: how long one is; mean, exponential.
        day_s: how long the day is: less than 24 hours show it in time lapse, with bursts as long as ever.
    """

    prompts: Lengths
    outputs: Lengths
    rate_per_s: float
    night: float = 0.2
    peak: float = 14 / 24
    bursts: float = 12.0
    times: float = 2.0
    burst_s: float = 300.0
    day_s: float = DAY_S

    def __post_init__(self) -> None:
        bursting = self.bursts >= 0 and 0 < self.burst_s < math.inf and 0 < self.day_s < math.inf and self.times >= 1
        if not (0 < self.rate_per_s < math.inf and 0 < self.night <= 1 and bursting and self._calm_s > 0):
            raise InvalidRequestError(f"a day that cannot be: {self}")

    def arrivals(self, rng: random.Random, rate_per_s: float) -> Iterator[Arrival]:
        """Without end, day after day, at that mean rate."""
        return drawn(self.prompts, self.outputs, rng, self._times(rng, rate_per_s))

    def calm_rate(self, at_s: float, rate_per_s: float) -> float:
        """Requests a second then, where there is no burst."""
        hours = self.night + (1 - self.night) * (1 + math.cos(math.tau * (at_s / self.day_s - self.peak))) / 2
        in_bursts = self.bursts * self.burst_s / self.day_s * (self.times - 1)
        return rate_per_s * hours / ((1 + self.night) / 2) / (1 + in_bursts)

    def _times(self, rng: random.Random, rate_per_s: float) -> Iterator[float]:
        """Of all moments at the highest rate, those that are kept (thinning)."""
        highest = self.calm_rate(self.peak * self.day_s, rate_per_s) * self.times
        now_s, bursting, until_s = 0.0, True, 0.0
        while True:
            now_s += rng.expovariate(highest)
            while now_s > until_s:
                bursting = not bursting
                mean_s = self.burst_s if bursting else self._calm_s
                until_s += rng.expovariate(1 / mean_s) if mean_s < math.inf else math.inf
            rate = self.calm_rate(now_s, rate_per_s) * (self.times if bursting else 1.0)
            if rng.random() * highest < rate:
                yield now_s

    @property
    def _calm_s(self) -> float:
        """Mean time between two bursts."""
        return self.day_s / self.bursts - self.burst_s if self.bursts else math.inf
