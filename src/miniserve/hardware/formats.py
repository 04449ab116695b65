"""Number formats by name: what a number takes, and which of a device's peaks computes it."""

from collections.abc import Mapping
from typing import NamedTuple

from miniserve.errors import InvalidRequestError


class Format(NamedTuple):
    """A number format: bytes of one weight with its share of the scales, and the peak it computes at."""

    bytes: float
    peak: str


#: By the name that its kernels' timings go by. Blocks: one scale of 4 bytes for 128 × 128, of 1 byte for 16 or for 32.
FORMATS: Mapping[str, Format] = {
    "fp32": Format(4, "fp32"),
    "tf32": Format(4, "tf32"),
    "fp16": Format(2, "fp16"),
    "bf16": Format(2, "bf16"),
    "fp8": Format(1, "fp8"),
    "fp8_block": Format(1 + 4 / 128**2, "fp8"),
    "int8": Format(1, "int8"),
    "nvfp4": Format(0.5 + 1 / 16, "fp4"),
    "mxfp4": Format(0.5 + 1 / 32, "fp4"),
}


def number_format(name: str) -> Format:
    """The format called `name`. Raises InvalidRequestError, with those there are, for another."""
    if name not in FORMATS:
        raise InvalidRequestError(f"no number format '{name}'; there is {', '.join(FORMATS)}")
    return FORMATS[name]
