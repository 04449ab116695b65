"""`Format`: a number format in six facts, from which all of its values follow.

A number is ± (1 + f / 2^m) · 2^e: m mantissa bits for f, and exponents e from `min_exponent` on. Below that come the
subnormals, ± f / 2^m · 2^min_exponent, evenly spaced down to zero. An integer fits the same description: all of its
values are subnormal. Nothing here rounds, and nothing here knows how a number lies in memory.

Sources: IEEE 754-2019 (FP16), NVIDIA A100 white paper (TF32, BF16), OCP 8-bit Floating Point Specification 1.0 (E4M3,
E5M2), OCP Microscaling Formats Specification 1.0 (E2M1).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: as papers write it.
        exponent_bits: 0 for an integer.
        mantissa_bits: explicit ones; the leading one of a normal number is not stored.
        max: the largest finite value. Where the top codes mean something else, it is less than the bits would allow.
        has_inf: whether overflow has a value of its own.
        has_nan: whether it can say "not a number".

    Example:
        >>> from miniserve.kernels.formats import E2M1, E4M3
        >>> E4M3.bits, E4M3.max, E4M3.smallest
        (8, 448.0, 0.001953125)
        >>> [value for value in E2M1.values().tolist() if value >= 0]
        [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    max: float
    has_inf: bool
    has_nan: bool

    @property
    def bits(self) -> int:
        """Of a number, its sign among them. TF32 has 19, though memory gives it 32."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def min_exponent(self) -> int:
        """That of the smallest normal number; for an integer, of the first number that it does not have."""
        return 2 - 2 ** (self.exponent_bits - 1) if self.exponent_bits else self.mantissa_bits

    @property
    def max_exponent(self) -> int:
        """That of the largest number."""
        return math.frexp(self.max)[1] - 1

    @property
    def smallest(self) -> float:
        """The smallest value above zero: the step between subnormals."""
        return 2.0 ** (self.min_exponent - self.mantissa_bits)

    @property
    def smallest_normal(self) -> float:
        """The smallest value with all of the mantissa's precision. An integer has none: beyond its largest."""
        return 2.0**self.min_exponent

    @property
    def epsilon(self) -> float:
        """The step after 1, relative to it: rounding a normal number changes it by at most half of that."""
        return 2.0**-self.mantissa_bits

    def values(self) -> Tensor:
        """Every finite value, ascending, zero once: float32 [n]. Half a million for TF32, 15 for E2M1."""
        fractions = torch.arange(2**self.mantissa_bits, dtype=torch.float64) / 2**self.mantissa_bits
        octaves = [fractions * 2.0**self.min_exponent]
        octaves += [(1 + fractions) * 2.0**e for e in range(self.min_exponent, self.max_exponent + 1)]
        positive = torch.cat(octaves)
        positive = positive[positive <= self.max]
        return torch.cat((-positive[1:].flip(0), positive)).float()


TF32 = Format("TF32", 8, 10, (2 - 2**-10) * 2.0**127, has_inf=True, has_nan=True)
BF16 = Format("BF16", 8, 7, (2 - 2**-7) * 2.0**127, has_inf=True, has_nan=True)
FP16 = Format("FP16", 5, 10, 65504.0, has_inf=True, has_nan=True)
E5M2 = Format("E5M2", 5, 2, 57344.0, has_inf=True, has_nan=True)
E4M3 = Format("E4M3", 4, 3, 448.0, has_inf=False, has_nan=True)
E2M1 = Format("E2M1", 2, 1, 6.0, has_inf=False, has_nan=False)
# Symmetric: -128 is left out, so that a scale serves both signs.
INT8 = Format("INT8", 0, 7, 127.0, has_inf=False, has_nan=False)
FORMATS = (TF32, BF16, FP16, E5M2, E4M3, E2M1, INT8)
