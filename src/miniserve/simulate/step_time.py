"""`StepTime`: how long one step takes on simulated hardware.

The cost model says what each operator does, the roofline with its fitted curves how long that takes; operators follow
one another. A step of decodes alone, which is most steps, has one operator that depends on the contexts, attention; the
others are computed once for each number of decodes.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from miniserve.hardware.cost import Operator, Part, Parts, attention, operators_of, step_operators
from miniserve.hardware.roofline import Roofline
from miniserve.hardware.shape import Parallel, Precision, Shape

FloatArray = npt.NDArray[np.float64]
WORTH_AN_ARRAY = 8  # steps


class StepTime:
    """Of one model, split in one way, on one kind of device.

    Args:
        shape, precision, parallel: what is computed, in what, and by how many.
        roofline: the device.
        overhead_s: of a step, whatever is in it: launching, sampling, sending tokens.
        imbalance: the busiest rank's share of a mixture's tokens, as a multiple of the mean; 1: all have as many.
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
    ) -> None:
        parallel.check(shape)
        self.shape, self.precision, self.parallel = shape, precision, parallel
        self.roofline, self.overhead_s, self.imbalance = roofline, overhead_s, imbalance
        self._but_attention: dict[int, float] = {}

    def operators(self, parts: Iterable[Part]) -> list[Operator]:
        """Of a step, as the busiest device does them."""
        return [self._busiest(op) for op in step_operators(self.shape, parts, self.precision, self.parallel)]

    def seconds(self, parts: Sequence[Part]) -> float:
        """Of any step."""
        if not parts:
            return 0.0
        if all(part.num_tokens == part.sampled == 1 for part in parts):
            return self.decode_seconds(len(parts), sum(part.start for part in parts), max(part.start for part in parts))
        return self.overhead_s + self.roofline.step_seconds(self.operators(parts))

    def decode_seconds(self, requests: int, cached: int, longest: int) -> float:
        """Of a step with one new token of each of some requests.

        Args:
            requests: how many, at least 1.
            cached: tokens in the KV cache before the step, all together.
            longest: the most of one request.
        """
        attention_s: float = self._attention_s(requests, cached, longest)
        return self._but_attention_s(requests) + attention_s

    def decode_run_seconds(self, requests: int, cached: int, longest: int, steps: int) -> FloatArray:
        """Of as many such steps after one another, each with its own time. Shape [steps]."""
        after = np.arange(steps)
        if steps < WORTH_AN_ARRAY or "decode_attention" not in self.roofline.efficiency.curves:
            each = (self.decode_seconds(requests, cached + at * requests, longest + at) for at in range(steps))
            return np.fromiter(each, np.float64, steps)
        attention_s = self._attention_s(requests, cached + after * requests, longest + after)
        return np.asarray(self._but_attention_s(requests) + attention_s)

    def _but_attention_s(self, requests: int) -> float:
        rest = self._but_attention.get(requests)
        if rest is None:
            parts = Parts(requests, requests, 1, 1, 1)  # contexts are attention's alone
            others = operators_of(self.shape, Parts(), parts, requests, self.precision, self.parallel)
            kept = (self._busiest(op) for op in others if op.kind != "decode_attention")
            rest = self._but_attention[requests] = self.overhead_s + self.roofline.step_seconds(kept)
        return rest

    def _attention_s(self, requests: int, cached: Any, longest: Any) -> Any:
        """Of numbers, or of arrays, as the fitted curves allow."""
        seen = cached + requests
        op = attention(
            "decode_attention", self.shape, self.precision, Parts(requests, requests, seen, seen, longest + 1),
            tensor=self.parallel.tensor, times=self.shape.layers,
        )  # fmt: skip
        return self.roofline.seconds(op)

    def _busiest(self, op: Operator) -> Operator:
        if op.kind != "moe" or self.imbalance == 1.0:
            return op
        return op._replace(flops=op.flops * self.imbalance, activation_bytes=op.activation_bytes * self.imbalance)
