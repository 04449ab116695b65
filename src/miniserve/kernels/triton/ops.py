"""The decoder's operators on an NVIDIA GPU: Triton, but for products of many rows, the vendor's, and `argmax`, torch's.

Results equal the reference's within rounding. Nothing here waits for the device. Letters in shapes are the reference's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from miniserve.kernels import reference
from miniserve.kernels.linear_weight import LinearWeight
from miniserve.kernels.scaled_gemm import Rows, fp8_gemm
from miniserve.kernels.triton.attention import paged_attention
from miniserve.kernels.triton.few_rows import MOST_INT8_ROWS, MOST_ROWS, few_rows_linear
from miniserve.kernels.triton.moe import moe
from miniserve.kernels.triton.rowwise import add_rms_norm, expanded_rows, rms_norm, rope_store, rounded_rows, silu_mul

__all__ = [
    "add_rms_norm",
    "argmax",
    "linear",
    "moe",
    "paged_attention",
    "rms_norm",
    "rope_store",
    "route",
    "silu_mul",
]


def linear(x: Tensor, weight: LinearWeight) -> Tensor:
    """`reference.linear`: [T, K] -> [T, N].

    Few rows: `few_rows_linear`, which reads weights of 8 bits as they are and leaves x as it is. More: cuBLAS. With
    E4M3 weights x is then rounded to E4M3 with a scale a token, and the tensor cores multiply 8 bits with 8. Rounded
    to INT8 so, tokens would lose too much: INT8 counts as few rows for longer, and is expanded for a product of more.
    """
    most = MOST_INT8_ROWS if weight.data.dtype is torch.int8 else MOST_ROWS
    if len(x) <= most and x.element_size() == 2:
        return few_rows_linear(x, weight.data, weight.scales, weight.bias)
    if weight.scales is None:
        return reference.linear(x, weight)
    if not weight.is_e4m3:
        wide = expanded_rows(Rows(weight.data, weight.scales), x.dtype)
        return F.linear(x, wide, weight.bias)
    y = fp8_gemm(rounded_rows(x), Rows(weight.data, weight.scales), x.dtype)
    return y if weight.bias is None else y + weight.bias


def route(router_logits: Tensor, experts_per_token: int, normalize: bool) -> tuple[Tensor, Tensor]:
    """`reference.route`, with its arguments."""
    return reference.route(router_logits, experts_per_token, normalize)


def argmax(logits: Tensor) -> Tensor:
    """`reference.argmax`: torch's own is one pass. [R, V] -> [R] int64."""
    return reference.argmax(logits)
