"""`Outcome`: what came of one candidate of a plan, with or without tiers for its KV."""

from dataclasses import dataclass, field

from miniserve.simulate.candidates import Candidate
from miniserve.simulate.capacity import Trial


@dataclass(frozen=True)
class Outcome:
    """What came of a candidate.

    Attributes:
        candidate: which.
        reason: why it lost; of the winner, and of those that are behind it, what keeps it from serving more.
        best: its largest trial that meets the limits; None: there is none.
        share: of the time that devices compute for a mean request, by kind of work, the most first.
        tiers: the names of those that keep KV besides the devices, the nearest first.
        missed: its smallest trial that does not meet the limits; None: there was none.
    """

    candidate: Candidate
    reason: str
    best: Trial | None = None
    share: dict[str, float] = field(default_factory=dict)
    tiers: tuple[str, ...] = ()
    missed: Trial | None = None

    @property
    def output_tokens_per_s(self) -> float:
        """Of all devices; 0 if it cannot serve within the limits."""
        return self.best.output_tokens_per_s if self.best else 0.0
