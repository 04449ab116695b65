"""`Setting`: where a section measures, for how long, and against which ceilings."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from miniserve.bench.timing import Work, seconds_per_call

Row = dict[str, Any]
T = TypeVar("T")
SETS_BYTES = 200e6  # of buffers taken in turn: several times the largest L2 cache


@dataclass
class Setting:
    """What all sections share.

    Attributes:
        device: the GPU; the CPU with `tiny`.
        tiny: small shapes in Triton's interpreter: does everything run?
        ends: when this section should be done, on `time.monotonic`'s clock.
        ceilings: bytes and FLOPs a second as the first section measured them; empty if it did not run.
    """

    device: torch.device
    tiny: bool
    ends: float = math.inf
    ceilings: Row = field(default_factory=dict)

    @property
    def left_s(self) -> float:
        """Seconds that this section still has."""
        return self.ends - time.monotonic()

    def time(self, works: Sequence[Work], *, graph: bool = True) -> float:
        """Median seconds of a call."""
        repeats = 1 if self.tiny else 12
        return seconds_per_call(works, self.device, repeats=repeats, graph=graph, budget_s=0.2)

    def num_sets(self, nbytes: float) -> int:
        """How many buffers of that size to take in turn so that no cache holds them."""
        return 1 if self.tiny else min(64, 1 + math.ceil(SETS_BYTES / nbytes))

    def share(self, name: str, rate: float) -> float | None:
        """A rate as a share of the ceiling, if that is known."""
        return rate / self.ceilings[name] if self.ceilings.get(name) else None

    def best(self, candidates: Sequence[T], measure: Callable[[T], float]) -> tuple[dict[T, float], dict[str, str]]:
        """Seconds of the candidates in turn until the time is up, and why some could not be measured."""
        seconds: dict[T, float] = {}
        failed: dict[str, str] = {}
        for candidate in candidates:
            if self.left_s < 0 and seconds:
                break
            try:
                seconds[candidate] = measure(candidate)
            except Exception as error:  # a tile too large for shared memory, say: recorded
                failed[str(candidate)] = f"{type(error).__name__}: {error}"[:200]
        return seconds, failed


Section = Callable[[Setting], Iterator[Row]]
