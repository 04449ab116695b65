"""Number formats of matrix units: what each can say, rounding to it, and the scales that make few bits enough.

`number_format` describes, `rounding` rounds, `scaling` shares scales among numbers. All of it is emulation: elements
keep lying in float32, on the values that the format has, so that errors are a format's own and speed is not.
"""

from miniserve.kernels.formats.number_format import BF16, E2M1, E4M3, E5M2, FORMATS, FP16, INT8, TF32, Format
from miniserve.kernels.formats.rounding import round_to
from miniserve.kernels.formats.scaling import MXFP4, MXFP8, NVFP4, Quantised, Scheme, per_row, per_tensor, quantise

__all__ = [
    "BF16",
    "E2M1",
    "E4M3",
    "E5M2",
    "FORMATS",
    "FP16",
    "INT8",
    "MXFP4",
    "MXFP8",
    "NVFP4",
    "TF32",
    "Format",
    "Quantised",
    "Scheme",
    "per_row",
    "per_tensor",
    "quantise",
    "round_to",
]
