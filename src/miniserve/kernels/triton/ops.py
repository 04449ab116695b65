"""The decoder's operators on an NVIDIA GPU: Triton, but for products, which are the vendor's, and `argmax`, torch's.

Results equal the reference's within rounding. Nothing here waits for the device. Letters in shapes are the reference's.
"""

from torch import Tensor

from miniserve.kernels import reference
from miniserve.kernels.linear_weight import LinearWeight
from miniserve.kernels.triton.attention import paged_attention
from miniserve.kernels.triton.moe import moe
from miniserve.kernels.triton.rowwise import add_rms_norm, rms_norm, rope_store, silu_mul

__all__ = ["add_rms_norm", "argmax", "linear", "moe", "paged_attention", "rms_norm", "rope_store", "silu_mul"]


def linear(x: Tensor, weight: LinearWeight) -> Tensor:
    """`reference.linear`: one call of cuBLAS, as the weights are floats of x's dtype. [..., K] -> [..., N]."""
    return reference.linear(x, weight)


def argmax(logits: Tensor) -> Tensor:
    """`reference.argmax`: torch's own is one pass. [R, V] -> [R] int64."""
    return reference.argmax(logits)
