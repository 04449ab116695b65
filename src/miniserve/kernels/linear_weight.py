"""`LinearWeight`: the matrix of a linear layer as it lies in memory: float32, bfloat16, float16, or fewer bits.

For GPUs there are E4M3 and INT8 with a scale a row: data [N, K] float8_e4m3fn or int8, scales [N, 1] float32;
w = data · scale.

For CPUs there are `Groups` of 32 elements, laid out in the order in which the CPU kernels read them; that
changes no value:

- int8: data [N, K] int8, of each group the elements i and i + 16 side by side; scales [N, K/32]; w = q · scale.
- 4 bits: eight rows together: data [N/8, K/64, 8, 32] uint8; of a block of 64 elements of each of the rows, byte
  4 r + j of vector s holds row r's element 4 s + j in its lower and 32 + 4 s + j in its upper half; scales
  [N/8, K/32, 2, 8], of each group the eight rows' scales and then their minimums; w = q · scale + minimum.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from miniserve.kernels.groups import GROUP, Bits, Groups

BLOCK = 64  # elements of a row that the CPU kernels read together
ROWS = 8  # rows that lie together, with 4 bits
STEPS = 8  # in which a group's elements are read, four at a time


@dataclass(frozen=True)
class LinearWeight:
    """W [N, K] as it lies in memory.

    Attributes:
        data: [N, K] float32, bfloat16 or float16; or E4M3, int8 or uint8 as above.
        scales: as above; none where data are wider floats.
        bias: [N], or none.
    """

    data: Tensor
    scales: Tensor | None = None
    bias: Tensor | None = None

    @classmethod
    def packed(cls, groups: Groups, bias: Tensor | None = None) -> "LinearWeight":
        """Groups laid out, every value as it is.

        Args:
            groups: of [N, K], K a multiple of 64; with 4 bits, N a multiple of 8.
            bias: [N].

        Raises:
            ValueError: the shape is not one of these, or a scale or minimum is not finite.
        """
        shape, bits = groups.q.shape, groups.bits
        if not cls.can_pack(shape, bits):
            rows = f" and N of {ROWS}" if bits == 4 else ""
            raise ValueError(f"a weight of shape {list(shape)}: [N, K] with K a multiple of {BLOCK}{rows} is needed")
        for part in (groups.scale, groups.minimum):
            if part is not None and not bool(part.isfinite().all()):
                raise ValueError("a group has a scale or a minimum that is not finite")
        columns = shape[1]
        if groups.minimum is None:
            halves = groups.q.view(len(groups.q), -1, 2, GROUP // 2)
            return cls(halves.transpose(2, 3).flatten(1), groups.scale, bias)
        panels = groups.q.view(-1, ROWS, columns // BLOCK, 2, STEPS, 4)
        low, high = panels.permute(3, 0, 2, 4, 1, 5).flatten(-2)
        scales = torch.stack((groups.scale, groups.minimum), -1).view(-1, ROWS, columns // GROUP, 2)
        return cls(low | high << 4, scales.permute(0, 2, 3, 1).contiguous(), bias)

    @staticmethod
    def can_pack(shape: Sequence[int], bits: Bits) -> bool:
        """Whether a weight of that shape has whole blocks."""
        return len(shape) == 2 and shape[1] % BLOCK == 0 and (bits == 8 or shape[0] % ROWS == 0)

    @property
    def is_4bit(self) -> bool:
        """Whether its rows lie in panels of eight."""
        return self.data.dtype is torch.uint8

    @property
    def has_row_scales(self) -> bool:
        """Whether it is E4M3 or INT8 with a scale a row. Those of groups have 16 bits."""
        return self.scales is not None and self.scales.dtype is torch.float32

    @property
    def is_e4m3(self) -> bool:
        """Whether it is E4M3 with a scale a row."""
        return self.data.dtype is torch.float8_e4m3fn

    @property
    def shape(self) -> tuple[int, int]:
        """N and K."""
        if self.is_4bit:
            return self.data.shape[0] * ROWS, self.data.shape[1] * BLOCK
        rows, columns = self.data.shape
        return rows, columns

    @property
    def nbytes(self) -> int:
        """What a product reads of it."""
        return sum(part.nbytes for part in (self.data, self.scales, self.bias) if part is not None)

    def rows(self, indices: Tensor) -> Tensor:
        """Some of its rows, as an embedding wants them: [T] int64 -> [T, K], a copy."""
        if self.is_4bit:  # the panels of eight rows that they lie in
            panels = LinearWeight(
                self.data[indices // ROWS], None if self.scales is None else self.scales[indices // ROWS]
            ).dense()
            return panels.view(len(indices), ROWS, -1)[torch.arange(len(indices)), indices % ROWS]
        return LinearWeight(self.data[indices], None if self.scales is None else self.scales[indices]).dense()

    def dense(self) -> Tensor:
        """W as it counts in products, [N, K]: in its own type, or float32 if it was rounded."""
        if self.scales is None:
            return self.data
        if self.has_row_scales:
            return self.data.float() * self.scales
        rows, columns = self.shape
        if self.data.dtype is torch.int8:
            q = self.data.view(rows, -1, GROUP // 2, 2).transpose(2, 3).reshape(rows, -1, GROUP)
            return (q * self.scales.float()[..., None]).flatten(1)
        pairs = self.data.view(-1, columns // BLOCK, STEPS, ROWS, 4)
        q = torch.stack((pairs & 15, pairs >> 4)).permute(1, 4, 2, 0, 3, 5).reshape(rows, -1, GROUP)
        scale, minimum = self.scales.float().permute(2, 0, 3, 1).reshape(2, rows, -1, 1)
        weight: Tensor = (q * scale + minimum).flatten(1)
        return weight
