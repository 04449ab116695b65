"""`StepTime`: how long one step takes on simulated hardware; `OneSided`: of devices that are all alike.

The cost model says what each operator does, the roofline with its fitted curves how long that takes; operators follow
one another. With `overlap` a step is two halves of its requests, and while one computes, the other's tokens travel to
experts and back: it takes what is longer, all computing or all travelling. A step of decodes alone, which is most
steps, has one operator that depends on the contexts, attention; the others are timed once for each number of decodes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from miniserve.hardware.cost import Operator, Part, Parts, gemm
from miniserve.hardware.efficiency import ROOFLINE
from miniserve.hardware.roofline import Roofline
from miniserve.hardware.shape import Parallel, Precision, Shape
from miniserve.hardware.step import decode_attention, operators_of, step_operators
from miniserve.simulate.speculation import Speculation, draft_head

FloatArray = npt.NDArray[np.float64]
WORTH_AN_ARRAY = 8  # steps


class StepTime(ABC):
    """Of one model, split in one way, on certain devices.

    Args:
        overhead_s: of a step, whatever is in it: launching, sampling, sending tokens.
        takes_arrays: whether `_decode_s` does.
        speculation: guesses that each step makes for the next one; None: it makes none.
    """

    def __init__(self, overhead_s: float, takes_arrays: bool, speculation: Speculation | None = None) -> None:
        self.overhead_s, self.speculation, self._takes_arrays = overhead_s, speculation, takes_arrays

    def seconds(self, parts: Sequence[Part]) -> float:
        """Of any step."""
        if not parts:
            return 0.0
        if not self.speculation and all(part.num_tokens == part.sampled == 1 for part in parts):
            return self.decode_seconds(len(parts), sum(part.start for part in parts), max(part.start for part in parts))
        return float(self._step_s(parts))

    def decode_seconds(self, requests: int, cached: int, longest: int) -> float:
        """Of a step with one new token of each of some requests, and no guesses.

        Args:
            requests: how many, at least 1.
            cached: tokens in the KV cache before the step, all together.
            longest: the most of one request.
        """
        return float(self._decode_s(requests, cached, longest))

    def decode_run_seconds(self, requests: int, cached: int, longest: int, steps: int) -> FloatArray:
        """Of as many such steps after one another, each with its own time. Shape [steps]."""
        after = np.arange(steps)
        if steps < WORTH_AN_ARRAY or not self._takes_arrays:
            each = (self.decode_seconds(requests, cached + at * requests, longest + at) for at in range(steps))
            return np.fromiter(each, np.float64, steps)
        return np.asarray(self._decode_s(requests, cached + after * requests, longest + after))

    @abstractmethod
    def work(self, parts: Sequence[Part]) -> Iterator[tuple[Operator, float]]:
        """Every operator of a step, with the seconds that it takes of all devices of a rank together."""

    @abstractmethod
    def _step_s(self, parts: Sequence[Part]) -> float:
        """Of a step that is not of decodes alone, or has guesses."""

    @abstractmethod
    def _decode_s(self, requests: int, cached: Any, longest: Any) -> Any:
        """As `decode_seconds`, of numbers, or of arrays."""


class OneSided(StepTime):
    """Of devices that all do the same.

    Args:
        shape, precision, parallel: what is computed, in what, and by how many.
        roofline: the device.
        overhead_s, speculation: see `StepTime`.
        imbalance: the busiest rank's share of a mixture's tokens, as a multiple of the mean; 1: all have as many.
        overlap: two halves take turns to compute and to travel (DeepSeek-V3's two micro-batches, arXiv 2412.19437,
            section 3.4). What the two take from each other is not counted.
    """

    def __init__(
        self,
        shape: Shape,
        precision: Precision,
        parallel: Parallel,
        roofline: Roofline,
        *,
        overhead_s: float = 0.0,
        imbalance: float = 1.0,
        speculation: Speculation | None = None,
        overlap: bool = False,
    ) -> None:
        parallel.check(shape)
        self.shape, self.precision, self.parallel = shape, precision, parallel
        self.roofline, self.imbalance, self.overlap = roofline, imbalance, overlap
        self._but_attention: dict[float, tuple[float, float]] = {}
        super().__init__(overhead_s, takes_arrays(shape, roofline), speculation)

    def operators(self, parts: Iterable[Part]) -> list[Operator]:
        """Of a step, as the busiest device does them; the draft head's, too."""
        parts = list(parts)
        operators = step_operators(self.shape, parts, self.precision, self.parallel)
        if self.speculation:
            operators += self._draft(parts, self.speculation)
        return [busiest(op, self.imbalance) for op in operators]

    def work(self, parts: Sequence[Part]) -> Iterator[tuple[Operator, float]]:
        """Of `StepTime`."""
        for op in self.operators(parts):
            yield op, self.roofline.seconds(op) * self.parallel.tensor

    def _step_s(self, parts: Sequence[Part]) -> float:
        halves = [parts[::2], parts[1::2]] if self.overlap and len(parts) > 1 else [parts]
        each = [self._seconds(self.operators(half)) for half in halves]
        computing_s, travelling_s = (sum(times) for times in zip(*each, strict=True))
        return float(self.overhead_s + _together(computing_s, travelling_s, len(halves)))

    def _decode_s(self, requests: int, cached: Any, longest: Any) -> Any:
        halves = 2 if self.overlap and requests > 1 else 1
        computing_s, travelling_s = self._but_attention_s(requests / halves)
        seen = (cached + requests) / halves
        parts = Parts(requests / halves, requests / halves, seen, seen, longest + 1)
        op = decode_attention(self.shape, self.precision, parts, self.parallel.tensor)
        computing_s = computing_s + self.roofline.seconds(op)
        return self.overhead_s + _together(halves * computing_s, halves * travelling_s, halves)

    def _but_attention_s(self, requests: float) -> tuple[float, float]:
        rest = self._but_attention.get(requests)
        if rest is None:
            parts = Parts(requests, requests, 1, 1, 1)  # contexts are attention's alone
            others = operators_of(self.shape, Parts(), parts, requests, self.precision, self.parallel)
            kept = [busiest(op, self.imbalance) for op in others if op.name != "decode attention"]
            rest = self._but_attention[requests] = self._seconds(kept)
        return rest

    def _seconds(self, operators: Sequence[Operator]) -> tuple[float, float]:
        """That a device computes, and that tokens travel."""
        travelling = self.roofline.step_seconds(op for op in operators if op.kind == "all_to_all")
        return self.roofline.step_seconds(op for op in operators if op.kind != "all_to_all"), travelling

    def _draft(self, parts: Sequence[Part], speculation: Speculation) -> list[Operator]:
        """The head over all tokens of the step, and then over the newest one of each request, guess after guess."""
        head = draft_head(self.shape)
        choosing = [part for part in parts if part.sampled]
        newest = Parts.of(Part(part.start + part.num_tokens, 1) for part in choosing)
        decodes = Parts.of(part for part in parts if part.is_decode)
        prefills = Parts.of(part for part in parts if not part.is_decode)
        rounds = [(prefills, decodes, 1), (Parts(), newest, speculation.guesses - 1)]
        operators = []
        for prompts, others, times in rounds:
            found = operators_of(head, prompts, others, len(choosing), self.precision, self.parallel)
            join = gemm(
                "draft join", self.precision.linear, prompts.tokens + others.tokens, head.hidden / self.parallel.tensor,
                2 * head.hidden, weight_bytes=self.precision.weight_bytes,
                activation_bytes=self.precision.activation_bytes,
            )  # fmt: skip
            operators += [op._replace(times=op.times * times) for op in (join, *found)] if found and times else []
        return operators


def busiest(op: Operator, imbalance: float) -> Operator:
    """As the device does it that most of a mixture's tokens go to: so many times the mean."""
    if imbalance == 1.0 or op.kind not in {"moe", "all_to_all", "network_all_to_all"}:
        return op
    return op._replace(
        flops=op.flops * imbalance, activation_bytes=op.activation_bytes * imbalance,
        link_bytes=op.link_bytes * imbalance,
    )  # fmt: skip


def takes_arrays(shape: Shape, roofline: Roofline) -> bool:
    """Whether attention's curves do, which alone depends on the contexts of a step of decodes."""
    kind = "latent_attention" if shape.latent else "decode_attention"
    curves = roofline.efficiency.curves.get(kind, {"": ROOFLINE})
    return all(curve.sharpness < math.inf for curve in curves.values())


def _together(computing_s: Any, travelling_s: Any, halves: int) -> Any:
    """Of a step in so many parts."""
    return np.maximum(computing_s, travelling_s) if halves > 1 else computing_s + travelling_s
