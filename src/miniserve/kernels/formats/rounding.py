"""Rounding to a format: to the nearest of its values, ties to the one whose last bit is zero.

The step between a format's values depends on the octave that a number is in, and on nothing else. So it is enough to
know the power of two below the number, which is its bits with the mantissa cleared. To divide by the step and to
multiply with it is then exact, and `torch.round`, which is to nearest-even, does all the rounding there is.
"""

import torch
from torch import Tensor

from miniserve.errors import InvalidRequestError
from miniserve.kernels.formats.number_format import Format

NARROW = (torch.float32, torch.bfloat16, torch.float16)  # float32 holds each of their values exactly
EXPONENT = 0x7F800000  # the exponent's bits in a float32


def power_of_two_below(x: Tensor) -> Tensor:
    """The largest power of two in |x|: float32, 0 for subnormals and infinity for what is not finite."""
    return (x.view(torch.int32) & EXPONENT).view(torch.float32)


def round_to(x: Tensor, fmt: Format, *, saturate: bool = True) -> Tensor:
    """Round each number to the nearest value of a format, ties to even.

    Args:
        x: [...], float32, bfloat16 or float16.
        fmt: the format.
        saturate: what becomes of numbers that round beyond the largest value, infinities among them: the largest value
            itself, with their sign; or else infinity where the format has one, and NaN where it has only that. A
            format with neither always saturates. (The OCP specification's two modes of conversion.)

    Returns:
        [...] float32. NaN stays NaN.

    Raises:
        InvalidRequestError: a type that float32 cannot hold; a NaN, and the format has none.
    """
    if x.dtype not in NARROW:
        raise InvalidRequestError(f"round_to: {x.dtype} is not one of {', '.join(map(str, NARROW))}")
    wide = x.float()
    if not fmt.has_nan and bool(wide.isnan().any()):
        raise InvalidRequestError(f"round_to: there is a NaN, and {fmt.name} has none")
    step = power_of_two_below(wide).clamp_(min=fmt.smallest_normal).mul_(fmt.epsilon)
    rounded = (wide / step).round_().mul_(step)
    if saturate or not fmt.has_nan:
        return torch.where(wide.isinf(), wide, rounded).clamp_(-fmt.max, fmt.max)
    beyond = wide * torch.inf if fmt.has_inf else torch.full_like(wide, torch.nan)
    return torch.where(rounded.abs() <= fmt.max, rounded, beyond)
