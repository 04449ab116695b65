"""Linear layers in C++: weights of float32, bfloat16, int8 or 4 bits, read as they lie in memory.

At one token a layer takes as long as reading its weights, and torch's own kernels read bfloat16, int8 and 4-bit weights
at a third to a half of the memory's speed where the processor has no instructions for these types. With many tokens
this one keeps up with torch's float32 product. Only bfloat16 products in hardware are far faster: see
`torch_is_faster`.

Invariants: a token's result has the same bits whatever other tokens are there, unless torch multiplies. Sums are
float32. Where weights are of few bits, activations are rounded: for int8 to 16 bits with one scale a token, an error of
about 3e-5; for 4 bits to 8 bits with a scale for each 32, and to 16 where one of the 32 is an outlier: an error of
about 5e-3, a twentieth of what rounding weights to 4 bits costs.
"""

import functools

import torch
from torch import Tensor

from miniserve.hardware.this_machine import instruction_sets
from miniserve.kernels import reference
from miniserve.kernels.cpu.binding import BF16_ACTIVATIONS, functions
from miniserve.kernels.linear_weight import BLOCK, LinearWeight

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.uint8: 3}  # in kernels.h
MANY = 16  # tokens from which hardware for bfloat16 products is worth its set-up


@functools.cache
def has_bf16_products() -> bool:
    """Whether this processor multiplies bfloat16 matrices itself (AMX, AVX-512 BF16, or Arm's BF16)."""
    return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(instruction_sets())


def torch_is_faster(weight: LinearWeight, tokens: int) -> bool:
    """Whether this product is one for torch: bfloat16 weights, many tokens, hardware for it."""
    return weight.data.dtype is torch.bfloat16 and tokens >= MANY and has_bf16_products()


def fits(weight: LinearWeight) -> bool:
    """Whether the C++ takes it."""
    return weight.data.dtype in KINDS and weight.shape[1] % BLOCK == 0 and weight.data.is_contiguous()


def linear(x: Tensor, weight: LinearWeight) -> Tensor:
    """`reference.linear`.

    Args:
        x: [..., K], float32 or bfloat16.
        weight: W [N, K].

    Returns:
        [..., N] in x's dtype.
    """
    cpp, (rows, columns) = functions(), weight.shape
    if x.shape[-1] != columns:
        raise ValueError(f"x has rows of {x.shape[-1]}, the weight has rows of {columns}")
    tokens = x.numel() // columns
    if torch_is_faster(weight, tokens):
        return reference.linear(x.bfloat16(), weight).to(x.dtype)
    if cpp is None or x.dtype not in BF16_ACTIVATIONS or not fits(weight):
        return reference.linear(x, weight)
    x, bias = x.contiguous(), None if weight.bias is None else weight.bias.float()
    out = x.new_empty(*x.shape[:-1], rows)
    parts = [None if part is None else part.data_ptr() for part in (weight.data, weight.scales, bias)]
    kind, is_bf16 = KINDS[weight.data.dtype], BF16_ACTIVATIONS[x.dtype]
    cpp.linear(kind, x.data_ptr(), is_bf16, *parts, out.data_ptr(), tokens, rows, columns, torch.get_num_threads())
    return out
