"""Matrix products of 8 bits: y = x Wᵀ, where each row of x and each row of W has a scale of its own.

A scale that belongs to a whole row stands outside the sum over the row: the matrix unit multiplies codes, and each
result is scaled once, by x's row and W's. That is what makes row scales free, and scales within rows a matter for
hardware. `fp8_gemm` and `int8_gemm` use a GPU's own instruction where torch offers it for the device and the shape, and
emulate it elsewhere: the same numbers, up to the order of float32 sums for FP8 and exactly for INT8, at no gain in
speed. `reference` is the truth for both.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from miniserve.errors import InvalidRequestError
from miniserve.kernels.formats import E4M3, INT8, Format, per_row, quantise

CODES = {E4M3: torch.float8_e4m3fn, INT8: torch.int8}
FP8_MULTIPLE = 16  # of K and N, for torch._scaled_mm
INT8_MULTIPLE = 8  # of K and N, for torch._int_mm
INT8_ROWS = 17  # of x, at least, for torch._int_mm
LONGEST_INT8_ROW = (2**31 - 1) // 127**2  # products whose sum an int32 holds, whatever they are


class Rows(NamedTuple):
    """A matrix whose rows have a scale each: row r is data[r] · scales[r].

    data: [R, K] float8_e4m3fn or int8. scales: [R, 1] float32.
    """

    data: Tensor
    scales: Tensor


def quantise_rows(x: Tensor, fmt: Format) -> Rows:
    """Round a matrix to codes with a scale for each row, the row's largest magnitude at the format's largest value.

    Args:
        x: [R, K], float32, bfloat16 or float16, finite: activations, a row a token, or weights, a row an output.
        fmt: `E4M3` or `INT8`.
    """
    if fmt not in CODES or x.dim() != 2:
        names = " and ".join(each.name for each in CODES)
        raise InvalidRequestError(f"quantise_rows: {list(x.shape)} to {fmt.name}: it takes [R, K], to {names}")
    quantised = quantise(x, per_row(fmt))
    return Rows(quantised.elements.to(CODES[fmt]), quantised.scales)


def reference(x: Rows, weight: Rows) -> Tensor:
    """The product of what the codes stand for, in float64: [T, K] and [N, K] -> [T, N] float64."""
    left, right = ((rows.data.double() * rows.scales.double()) for rows in (x, weight))
    return left @ right.T


def fp8_gemm(x: Rows, weight: Rows, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """y = x Wᵀ of E4M3 codes, summed in float32.

    On a GPU of compute capability 8.9 or more, `torch._scaled_mm`, if K and N are multiples of 16; it rounds to
    bfloat16, whatever type is asked for. Elsewhere the codes are widened to float32 and multiplied there.

    Args:
        x: [T, K].
        weight: [N, K].
        dtype: of the result: bfloat16, float16 or float32.

    Returns:
        [T, N].
    """
    _check(x, weight, E4M3)
    if has_fp8_gemm(x.data.device) and _multiples(weight, FP8_MULTIPLE):
        return torch._scaled_mm(
            x.data, weight.data.T, scale_a=x.scales, scale_b=weight.scales.T, out_dtype=torch.bfloat16
        ).to(dtype)
    return (F.linear(x.data.float(), weight.data.float()) * x.scales * weight.scales.T).to(dtype)


def int8_gemm(x: Rows, weight: Rows, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """y = x Wᵀ of integer codes, summed exactly and scaled in float32.

    On a GPU `torch._int_mm`, for more than 16 rows and with K and N multiples of 8. Elsewhere a float64 product, which
    is exact, as any such sum is an integer below 2^53; torch's own on a CPU is twelve times slower than that where the
    processor has no instruction for it.

    Args:
        x: [T, K].
        weight: [N, K].
        dtype: of the result: bfloat16, float16 or float32.

    Returns:
        [T, N].

    Raises:
        InvalidRequestError: also for K beyond 133,144, where a sum may overflow the hardware's 32 bits.
    """
    _check(x, weight, INT8)
    if x.data.shape[1] > LONGEST_INT8_ROW:
        raise InvalidRequestError(
            f"int8_gemm: rows of {x.data.shape[1]}: beyond {LONGEST_INT8_ROW} a sum may overflow 32 bits"
        )
    if x.data.is_cuda and len(x.data) >= INT8_ROWS and _multiples(weight, INT8_MULTIPLE):
        sums = torch._int_mm(x.data, weight.data.T)
    else:
        sums = F.linear(x.data.double(), weight.data.double())
    return (sums.float() * x.scales * weight.scales.T).to(dtype)


def has_fp8_gemm(device: torch.device) -> bool:
    """Whether the device multiplies FP8 itself: an NVIDIA GPU from Ada and Hopper on."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 9)


def _multiples(weight: Rows, of: int) -> bool:
    return all(size % of == 0 for size in weight.data.shape)


def _check(x: Rows, weight: Rows, fmt: Format) -> None:
    for name, rows in (("x", x), ("weight", weight)):
        data, scales = rows
        if data.dtype is not CODES[fmt] or data.dim() != 2 or data.numel() == 0:
            raise InvalidRequestError(
                f"{name} is {list(data.shape)} of {data.dtype}: a matrix of {CODES[fmt]}, not empty, is needed"
            )
        if scales.dtype is not torch.float32 or scales.shape != (len(data), 1):
            raise InvalidRequestError(
                f"{name} has scales {list(scales.shape)} of {scales.dtype}: [{len(data)}, 1] of float32 are needed"
            )
    if x.data.shape[1] != weight.data.shape[1]:
        raise InvalidRequestError(f"x has rows of {x.data.shape[1]}, the weight has rows of {weight.data.shape[1]}")
    if x.data.device != weight.data.device:
        raise InvalidRequestError(f"x is on {x.data.device}, the weight on {weight.data.device}")
