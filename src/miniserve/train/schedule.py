"""How large steps are: a rise to the peak, and half a cosine down from it (Loshchilov and Hutter 2017, "SGDR")."""

import math
from dataclasses import dataclass

from miniserve.errors import InvalidRequestError


@dataclass(frozen=True)
class Cosine:
    """The learning rate of each step.

    Args:
        peak: of the first step behind the rise.
        steps: all of them, the rise among them.
        warmup: steps of the rise, which is linear and begins above 0.
        floor: the last step's, as a share of the peak.
    """

    peak: float
    steps: int
    warmup: int = 0
    floor: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.peak < math.inf:
            raise InvalidRequestError(f"learning_rate is {self.peak}: it must be above 0, and finite")
        if self.steps < 1 or not 0 <= self.warmup < self.steps:
            raise InvalidRequestError(f"{self.warmup} steps of warm-up of {self.steps}: there must be more than those")
        if not 0 <= self.floor <= 1:
            raise InvalidRequestError(f"the last step's learning rate is {self.floor} of the peak: 0 to 1")

    def __call__(self, step: int) -> float:
        """Of step 0, 1, …; of any beyond the last the last one's."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, self.steps - 1 - self.warmup))
        return self.peak * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2)
