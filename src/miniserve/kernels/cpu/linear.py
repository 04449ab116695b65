"""Linear layers with weights in memory as float32, bfloat16, int8 or 4-bit, for a few tokens at a time.

What it is for: at one token, a layer takes as long as reading its weights, and torch's own kernels read bfloat16, int8
and 4-bit weights at a third to a half of the memory's speed where the processor has no instructions for these types.
With many tokens torch is as fast or faster; `linear` does not know that and leaves the choice to its caller.

Invariants: a token's result has the same bits whatever other tokens are there. Sums are float32; int8 and 4-bit weights
multiply activations that are rounded to 16 bits with one scale a token, an error of about 3e-5.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from miniserve.kernels.cpu.binding import BF16_ACTIVATIONS, functions

GROUP = 32  # elements of a row that share a scale
BLOCK = 64  # elements of a row that the C++ reads together

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.uint8: 3}  # in kernels.h


@dataclass(frozen=True)
class LinearWeight:
    """W [N, K] as it lies in memory.

    Attributes:
        data: [N, K] float32 or bfloat16; or, in the order of `_pack`, [N, K] int8, or [N, K / 2] uint8, two in a byte.
        scales: none; or float16: [N, K / 32] for int8, w = q · scale; [N, 2, K / 32] for 4-bit,
            w = q · scale + minimum.
        bias: [N] float32, or none.
    """

    data: Tensor
    scales: Tensor | None = None
    bias: Tensor | None = None

    @classmethod
    def of(cls, weight: Tensor, bits: Literal[4, 8] | None = None, bias: Tensor | None = None) -> "LinearWeight":
        """W as it is, or rounded to 8 or 4 bits by groups of 32.

        Rounding what was in such groups before, as a GGUF file's Q8_0 and Q4_1 are, loses nothing.

        Args:
            weight: [N, K], K a multiple of 64; float32 or bfloat16 unless it is to be rounded.
            bits: 8, 4, or None: as it is.
            bias: [N].

        Raises:
            ValueError: the shape or the type is not one of these.
        """
        if weight.dim() != 2 or weight.shape[1] % BLOCK:
            raise ValueError(f"a weight of shape {list(weight.shape)}: [N, K] with K a multiple of {BLOCK} is needed")
        bias = None if bias is None else bias.float().contiguous()
        if bits is None:
            if weight.dtype not in {torch.float32, torch.bfloat16}:
                raise ValueError(f"a weight of {weight.dtype}: float32 or bfloat16 is needed")
            return cls(weight.contiguous(), None, bias)
        groups = weight.float().reshape(len(weight), -1, GROUP)
        if bits == 8:
            scale = (groups.abs().amax(-1) / 127).half()
            rounded = (groups / _divisor(scale)).round().clamp(-127, 127)
            return cls(_pack(rounded.flatten(1).to(torch.int8), 2), scale, bias)
        minimum = groups.amin(-1).half()
        scale = ((groups.amax(-1) - minimum.float()) / 15).half()
        rounded = ((groups - minimum.float()[..., None]) / _divisor(scale)).round().clamp(0, 15)
        low, high = _pack(rounded.flatten(1).to(torch.uint8), 4).view(len(weight), -1, 2).unbind(-1)
        return cls(low | high << 4, torch.stack((scale, minimum), 1), bias)

    @property
    def shape(self) -> tuple[int, int]:
        """N and K."""
        rows, columns = self.data.shape
        return rows, columns * 2 if self.data.dtype is torch.uint8 else columns

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


def linear(x: Tensor, weight: LinearWeight) -> Tensor:
    """y = x Wᵀ + bias.

    Args:
        x: [..., K], float32 or bfloat16.
        weight: W [N, K].

    Returns:
        [..., N] in x's dtype.
    """
    cpp, (rows, columns) = functions(), weight.shape
    if x.shape[-1] != columns:
        raise ValueError(f"x has rows of {x.shape[-1]}, the weight has rows of {columns}")
    if cpp is None or x.dtype not in BF16_ACTIVATIONS:
        bias = None if weight.bias is None else weight.bias.to(x.dtype)
        return F.linear(x, weight.dense().to(x.dtype), bias)
    x = x.contiguous()
    out = x.new_empty(*x.shape[:-1], rows)
    parts = [None if part is None else part.data_ptr() for part in (weight.data, weight.scales, weight.bias)]
    sizes = (x.numel() // columns, rows, columns)
    kind, is_bf16 = KINDS[weight.data.dtype], BF16_ACTIVATIONS[x.dtype]
    cpp.linear(kind, x.data_ptr(), is_bf16, *parts, out.data_ptr(), *sizes, torch.get_num_threads())
    return out


def _pack(q: Tensor, parts: int) -> Tensor:
    """[N, K] in the order the C++ reads: of 16 · `parts` elements those at i, i + 16 and so on lie together."""
    return q.view(len(q), -1, parts, 16).transpose(2, 3).flatten(1)


def _unpack(data: Tensor, parts: int) -> Tensor:
    """What `_pack` had."""
    return data.view(len(data), -1, 16, parts).transpose(2, 3).flatten(1)


def _divisor(scale: Tensor) -> Tensor:
    """A scale for groups of one; nothing divides by zero where a group is one value."""
    return scale.float().clamp(min=1e-30)[..., None]
