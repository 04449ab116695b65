"""`Times`: the moments of one request, and its share of the engine's time. Seconds of the engine's clock."""

from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(slots=True)
class Times:
    """Moments of one request, in seconds of the engine's clock; None until they come.

    `spent_s` is no moment: its share of the engine's time. A step's time is shared out by tokens: whoever had more of
    them computed, has more of it. So the shares of all requests are together the time that steps took.
    """

    queued_s: float = 0.0
    scheduled_s: float | None = None
    tokens_s: list[float] = field(default_factory=list)
    finished_s: float | None = None
    spent_s: float = 0.0
    _told_s: float = 0.0

    def newly_spent_s(self) -> float:
        """What was added to `spent_s` since this was asked last."""
        newly, self._told_s = self.spent_s - self._told_s, self.spent_s
        return newly

    @property
    def queue_s(self) -> float | None:
        """How long it waited for its first step."""
        return None if self.scheduled_s is None else self.scheduled_s - self.queued_s

    @property
    def ttft_s(self) -> float | None:
        """Time to first token, the wait in the queue included."""
        return self.tokens_s[0] - self.queued_s if self.tokens_s else None

    @property
    def itl_s(self) -> list[float]:
        """The gaps between tokens."""
        return [after - before for before, after in pairwise(self.tokens_s)]
