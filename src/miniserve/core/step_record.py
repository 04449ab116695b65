"""`StepRecord`: what one step did and how long it took, for drawing and for finding where time goes.

Plain values, taken after the step: they stay what they are. Seconds are of the engine's clock.
"""

from dataclasses import dataclass
from typing import NamedTuple


class PartRecord(NamedTuple):
    """One request's part of a step: which tokens were computed, and whether new ones came.

    Of `num_tokens`, the last `num_drafted` were guesses, and `num_accepted` of these were right.
    """

    request_id: str
    start: int
    num_tokens: int
    sampled: bool
    num_drafted: int = 0
    num_accepted: int = 0


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step, for drawing and for finding where time goes.

    Attributes:
        index: a running number.
        start_s: when the scheduler began.
        schedule_s: the scheduler's own time, before and after the execution.
        execute_s: the host's time in the executor: launching the step, and waiting for it. Where steps overlap, the
            device takes longer: it computed while the host scheduled.
        seconds: the executor's own times, by name; a split of `execute_s` where steps do not overlap.
        parts: who computed what.
        preempted: who lost its blocks.
        num_running, num_waiting: after the step.
        num_free_blocks: after the step; free blocks may still be cached.
    """

    index: int
    start_s: float
    schedule_s: float
    execute_s: float
    seconds: dict[str, float]
    parts: tuple[PartRecord, ...]
    preempted: tuple[str, ...]
    num_running: int
    num_waiting: int
    num_free_blocks: int

    @property
    def num_tokens(self) -> int:
        """Tokens computed in the step."""
        return sum(part.num_tokens for part in self.parts)
