"""`Groups`: a matrix of few bits, row by row, before it is laid out as kernels read it.

Each row is cut into groups of 32 elements with a scale, and with 4 bits a minimum, of their own; w = q · scale, or
q · scale + minimum. GGUF's Q8_0, Q4_0 and Q4_1 are such groups, so what a file holds can be taken over bit by bit;
`rounding` makes groups of floats.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

GROUP = 32  # elements of a row that share a scale
Bits = Literal[4, 8]


@dataclass(frozen=True)
class Groups:
    """W [N, K] in groups of 32.

    Attributes:
        q: [N, K] int8, -127 to 127; or, with 4 bits, uint8, 0 to 15.
        scale: [N, K/32] float16.
        minimum: with 4 bits, [N, K/32] float16.
    """

    q: Tensor
    scale: Tensor
    minimum: Tensor | None = None

    @property
    def bits(self) -> Bits:
        """8 or 4."""
        return 8 if self.minimum is None else 4

    @classmethod
    def rounding(cls, weight: Tensor, bits: Bits) -> Self:
        """W [N, K] rounded to 8 bits (symmetric, the largest of a group at 127) or 4 (smallest at 0, largest at 15).

        Raises:
            ValueError: no matrix, K is not a multiple of 32, or a value has no place in a group with a half scale.
        """
        if weight.dim() != 2 or weight.shape[1] % GROUP:
            raise ValueError(f"a weight of shape {list(weight.shape)} has no whole groups of {GROUP} in a row")
        if not bool(weight.abs().amax() < torch.finfo(torch.half).max):
            raise ValueError("it holds NaN, or values beyond 65504, which are more than a scale of 16 bits can span")
        groups = weight.float().reshape(len(weight), -1, GROUP)
        if bits == 8:
            scale = (groups.abs().amax(-1) / 127).half()
            q = (groups / _divisor(scale)).round_().clamp_(-127, 127)
            return cls(q.to(torch.int8).flatten(1), scale)
        minimum = groups.amin(-1).half()
        scale = ((groups.amax(-1) - minimum.float()) / 15).half()
        q = (groups - minimum.float()[..., None]).div_(_divisor(scale)).round_().clamp_(0, 15)
        return cls(q.to(torch.uint8).flatten(1), scale, minimum)

    @classmethod
    def stacked(cls, parts: Sequence[Self]) -> Self:
        """The rows of several matrices of the same bits, one matrix below the other."""
        minimums = [part.minimum for part in parts if part.minimum is not None]
        return cls(
            torch.cat([part.q for part in parts]),
            torch.cat([part.scale for part in parts]),
            torch.cat(minimums) if minimums else None,
        )

    def take(self, rows: Tensor) -> "Groups":
        """Some of its rows, [R] int64, in that order."""
        minimum = None if self.minimum is None else self.minimum[rows]
        return Groups(self.q[rows], self.scale[rows], minimum)

    def dense(self) -> Tensor:
        """W [N, K] float32."""
        q = self.q.view(len(self.q), -1, GROUP).float()
        weight = q * self.scale.float()[..., None]
        if self.minimum is not None:
            weight += self.minimum.float()[..., None]
        return weight.flatten(1)


def _divisor(scale: Tensor) -> Tensor:
    """A scale for groups of one; nothing divides by zero where a group is one value."""
    return scale.float().clamp(min=1e-30)[..., None]
