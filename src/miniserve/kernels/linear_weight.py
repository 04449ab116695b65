"""`LinearWeight`: the matrix of a linear layer as it lies in memory: float32, bfloat16, float16, 8 bits or 4 bits.

The formats of few bits cut each row into groups of 32 elements with a scale of their own, as GGUF's Q8_0 and Q4_1 do:
what was in such groups before stays exactly what it was. Their elements lie in the order that the CPU kernels read.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

GROUP = 32  # elements of a row that share a scale
BLOCK = 64  # elements of a row that the CPU kernels read together
Bits = Literal[4, 8]


@dataclass(frozen=True)
class LinearWeight:
    """W [N, K] as it lies in memory.

    Attributes:
        data: [N, K] float32, bfloat16 or float16; or, in the order of `_pack`, [N, K] int8, or [N, K / 2] uint8, two in
            a byte.
        scales: none; or float16: [N, K / 32] for int8, w = q · scale; [N, 2, K / 32] for 4-bit,
            w = q · scale + minimum.
        bias: [N], or none.
    """

    data: Tensor
    scales: Tensor | None = None
    bias: Tensor | None = None

    @classmethod
    def rounded(cls, weight: Tensor, bits: Bits, bias: Tensor | None = None) -> "LinearWeight":
        """W rounded to 8 or 4 bits by groups of 32.

        Args:
            weight: [N, K], K a multiple of 64.
            bits: 8: symmetric, the largest of a group at 127; 4: from the smallest of a group, 0, to the largest, 15.
            bias: [N].

        Raises:
            ValueError: the shape is not one of these.
        """
        if weight.dim() != 2 or weight.shape[1] % BLOCK:
            raise ValueError(f"a weight of shape {list(weight.shape)}: [N, K] with K a multiple of {BLOCK} is needed")
        groups = weight.float().reshape(len(weight), -1, GROUP)
        if bits == 8:
            scale = (groups.abs().amax(-1) / 127).half()
            rounded = (groups / _divisor(scale)).round_().clamp_(-127, 127)
            return cls(_pack(rounded.flatten(1).to(torch.int8), 2), scale, bias)
        minimum = groups.amin(-1).half()
        scale = ((groups.amax(-1) - minimum.float()) / 15).half()
        rounded = (groups - minimum.float()[..., None]).div_(_divisor(scale)).round_().clamp_(0, 15)
        low, high = _pack(rounded.flatten(1).to(torch.uint8), 4).view(len(weight), -1, 2).unbind(-1)
        return cls(low | high << 4, torch.stack((scale, minimum), 1), bias)

    @property
    def shape(self) -> tuple[int, int]:
        """N and K."""
        rows, columns = self.data.shape
        return rows, columns * 2 if self.data.dtype is torch.uint8 else columns

    @property
    def nbytes(self) -> int:
        """What a product reads of it."""
        return sum(part.nbytes for part in (self.data, self.scales, self.bias) if part is not None)

    def rows(self, indices: Tensor) -> Tensor:
        """Some of its rows, as an embedding wants them: [T] int64 -> [T, K], a copy."""
        return LinearWeight(self.data[indices], None if self.scales is None else self.scales[indices]).dense()

    def dense(self) -> Tensor:
        """W as it counts in products, [N, K]: in its own type, or float32 if it was rounded."""
        if self.scales is None:
            return self.data
        if self.data.dtype is torch.int8:
            groups = _unpack(self.data, 2).float().view(len(self.data), -1, GROUP)
            return (groups * self.scales.float()[..., None]).flatten(1)
        scale, minimum = self.scales.float()[..., None].unbind(1)
        groups = _unpack(torch.stack((self.data & 15, self.data >> 4), -1).flatten(1), 4).float()
        return (groups.view(len(self.data), -1, GROUP) * scale + minimum).flatten(1)


def _pack(q: Tensor, parts: int) -> Tensor:
    """[N, K] in the order the C++ reads: of 16 · `parts` elements those at i, i + 16 and so on lie together."""
    return q.view(len(q), -1, parts, 16).transpose(2, 3).flatten(1)


def _unpack(data: Tensor, parts: int) -> Tensor:
    """What `_pack` had."""
    return data.view(len(data), -1, 16, parts).transpose(2, 3).flatten(1)


def _divisor(scale: Tensor) -> Tensor:
    """A scale for groups of one; nothing divides by zero where a group is one value."""
    return scale.float().clamp(min=1e-30)[..., None]
