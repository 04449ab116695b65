"""Scales: a format of few bits spans a few octaves, so numbers that lie together share a factor that moves them there.

A `Scheme` says how many share one and in which format it is kept: one float32 for a tensor or a row, an E4M3 for each
16 with a float32 over all (NVFP4), a power of two for each 32 (MX). `quantise` chooses the scales from the largest
magnitude of each group and rounds; `Quantised.dequantise` is what a product then sees. Nothing is calibrated, rotated
or tuned: these are the formats' own rules.

Sources: OCP Microscaling Formats Specification 1.0, section 6.3 (MX); NVIDIA 2025, "Pretraining Large Language Models
with NVFP4", arXiv:2509.25149, appendix on quantisation (NVFP4).
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from miniserve.errors import InvalidRequestError
from miniserve.kernels.formats.number_format import E2M1, E4M3, Format
from miniserve.kernels.formats.rounding import NARROW, power_of_two_below, round_to

ScaleKind = Literal["float32", "e4m3", "e8m0"]
SCALE_BITS = {"float32": 32, "e4m3": 8, "e8m0": 8}
LEAST_POWER = 2.0**-127  # of E8M0
LEAST_TENSOR_SCALE = 2.0**-100  # far below any weight; its inverse, over any E4M3, is still a float32


@dataclass(frozen=True)
class Scheme:
    """Which numbers share a scale, and what it is.

    Attributes:
        name: as papers write it.
        element: the format of the numbers.
        shared_by: the whole tensor, a row (all of the last axis), or so many neighbours along the last axis.
        scale: "float32"; "e8m0", a power of two; "e4m3", with one float32 for the tensor besides.
    """

    name: str
    element: Format
    shared_by: Literal["tensor", "row"] | int
    scale: ScaleKind = "float32"


def per_tensor(element: Format) -> Scheme:
    """One float32 scale for everything."""
    return Scheme(f"{element.name} tensor", element, "tensor")


def per_row(element: Format) -> Scheme:
    """One float32 scale for each row: a token of the activations, an output of the weights."""
    return Scheme(f"{element.name} row", element, "row")


NVFP4 = Scheme("NVFP4", E2M1, 16, "e4m3")
MXFP8 = Scheme("MXFP8", E4M3, 32, "e8m0")
MXFP4 = Scheme("MXFP4", E2M1, 32, "e8m0")


@dataclass(frozen=True)
class Quantised:
    """Numbers of few bits with their scales.

    Attributes:
        elements: [..., K] float32, each a value of the scheme's format.
        scales: float32: [..., K / n] where n share one, [..., 1] for rows, [1, …, 1] for a tensor.
        scheme: how they came about.
        tensor_scale: of NVFP4, a float32 scalar over all scales; else 1.
    """

    elements: Tensor
    scales: Tensor
    scheme: Scheme
    tensor_scale: Tensor = field(default_factory=lambda: torch.ones(()))

    @property
    def bits(self) -> int:
        """What it would take in memory, scales included."""
        scale_bits = self.scales.numel() * SCALE_BITS[self.scheme.scale]
        over_all = 32 if self.scheme.scale == "e4m3" else 0
        return self.elements.numel() * self.scheme.element.bits + scale_bits + over_all

    def dequantise(self) -> Tensor:
        """The numbers they stand for: [..., K] float32."""
        groups = _in_groups(self.elements, self.scheme)
        return (groups * (self.scales * self.tensor_scale)[..., None]).flatten(-2)


def quantise(x: Tensor, scheme: Scheme) -> Quantised:
    """Choose each group's scale from its largest magnitude, and round the numbers to that.

    Args:
        x: [..., K], float32, bfloat16 or float16, all finite.
        scheme: `NVFP4`, `MXFP8`, `MXFP4`, `per_row(E4M3)`, …

    Raises:
        InvalidRequestError: K is no multiple of the group; x is empty, of another type, or not finite.
    """
    if x.dtype not in NARROW or x.dim() == 0 or x.numel() == 0:
        raise InvalidRequestError(
            f"quantise: {list(x.shape)} of {x.dtype}; it takes [..., K], not empty, of {', '.join(map(str, NARROW))}"
        )
    groups = _in_groups(x.float(), scheme)
    largest = groups.abs().amax(-1)
    if not bool(largest.isfinite().all()):
        raise InvalidRequestError(f"quantise: there are NaNs or infinities, which {scheme.name} cannot scale")
    if scheme.shared_by == "tensor":
        largest = largest.amax().view((1,) * x.dim())
    if scheme.scale == "e4m3":
        # Two levels: the largest group gets the largest scale that E4M3 has. Groups too small for its smallest get it.
        full = scheme.element.max
        tensor_scale = (largest.amax() / (full * E4M3.max)).clamp(min=LEAST_TENSOR_SCALE)
        scales = round_to(largest / full / tensor_scale, E4M3).clamp(min=E4M3.smallest)
        # Multiplied with the inverse, as the paper has it and hardware does; dividing differs in the last bit.
        scaled = groups * ((1 / tensor_scale) / scales)[..., None]
        return Quantised(round_to(scaled, scheme.element).flatten(-2), scales, scheme, tensor_scale)
    if scheme.scale == "e8m0":
        # The largest number lands in the format's top octave; what is beyond the largest value there saturates.
        scales = (power_of_two_below(largest) * 2.0**-scheme.element.max_exponent).clamp(min=LEAST_POWER)
    else:
        scales = largest / scheme.element.max
        scales = torch.where(scales == 0, 1.0, scales)  # a group of zeros
    return Quantised(round_to(groups / scales[..., None], scheme.element).flatten(-2), scales, scheme)


def _in_groups(x: Tensor, scheme: Scheme) -> Tensor:
    """[..., K] -> [..., K / n, n]."""
    columns = x.shape[-1]
    size = scheme.shared_by if isinstance(scheme.shared_by, int) else columns
    if columns % size:
        raise InvalidRequestError(f"{scheme.name} shares a scale among {size}: a last axis of {columns} is no multiple")
    return x.reshape(*x.shape[:-1], -1, size)
