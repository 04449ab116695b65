"""The decoder's operators on a CPU: C++ where it is compiled and takes the shapes, `reference` in torch elsewhere.

Results equal the reference's within rounding, and a token's result has the same bits whatever its batch is.
Activations and caches are float32 or bfloat16, each its own: float32 queries over a bfloat16 cache are the fast choice
on processors without bfloat16 arithmetic. Letters in shapes are the reference's.

`binding.unavailable()` says why there is no C++ on this machine, if so; nothing about a call tells which side ran.
"""

import torch
from torch import Tensor

from miniserve.kernels import reference
from miniserve.kernels.cpu.binding import BF16_ACTIVATIONS, BF16_OTHER, Functions, functions
from miniserve.kernels.cpu.linear import linear
from miniserve.kernels.cpu.moe import moe, route

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

STEP = 16  # elements that the C++ reads at a time: rows are a multiple of that
MAX_GROUP = 32  # query heads that share a key/value head


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`reference.rms_norm`. [..., H], [H] -> [..., H]."""
    cpp = functions()
    if cpp is None or not _fit(x.shape[-1], x, weight):
        return reference.rms_norm(x, weight, eps)
    x = x.contiguous()
    out = torch.empty_like(x)
    _norm(cpp, None, x, weight, out, eps)
    return out


def add_rms_norm(residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`reference.add_rms_norm`, with its arguments.

    Raises:
        ValueError: shapes or dtypes differ.
    """
    if x.dtype is not residual.dtype or x.shape != residual.shape:
        raise ValueError(f"x is {x.dtype} {list(x.shape)}, the residual {residual.dtype} {list(residual.shape)}")
    cpp = functions()
    if cpp is None or not _fit(x.shape[-1], x, weight) or not residual.is_contiguous():
        return reference.add_rms_norm(residual, x, weight, eps)
    out = torch.empty_like(residual)
    _norm(cpp, residual.data_ptr(), x.contiguous(), weight, out, eps)
    return out


def _norm(cpp: Functions, residual: int | None, x: Tensor, weight: Tensor, out: Tensor, eps: float) -> None:
    size, types = x.shape[-1], BF16_ACTIVATIONS[x.dtype] | BF16_OTHER[weight.dtype]
    pointers = residual, x.data_ptr(), weight.data_ptr(), out.data_ptr()
    cpp.norm(types, *pointers, x.numel() // size, size, eps, torch.get_num_threads())


def rope_store(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> Tensor:
    """`reference.rope_store`, with its arguments.

    Raises:
        ValueError: a slot lies behind the cache's end.
    """
    cpp, (blocks, block_size, kv_heads, dim) = functions(), k_cache.shape
    tokens, heads = qkv.shape[0], qkv.shape[1] - 2 * kv_heads
    caches_fit = k_cache.is_contiguous() and v_cache.is_contiguous() and k_cache.dtype is v_cache.dtype
    if cpp is None or not _fit(0, qkv, k_cache) or not caches_fit:
        return reference.rope_store(qkv, cos, sin, k_cache, v_cache, slots, k_scale=k_scale, v_scale=v_scale)
    qkv, cos, sin, slots = qkv.contiguous(), cos.contiguous(), sin.contiguous(), slots.contiguous()
    q = qkv.new_empty(tokens, heads, dim)
    inputs = [x.data_ptr() for x in (qkv, cos, sin)]
    outputs = [x.data_ptr() for x in (q, k_cache, v_cache, slots)]
    types, sizes = BF16_ACTIVATIONS[qkv.dtype] | BF16_OTHER[k_cache.dtype], (tokens, heads, kv_heads, dim)
    no_norms = None, None, 0.0
    if cpp.rope_store(types, *inputs, *no_norms, *outputs, *sizes, blocks * block_size, torch.get_num_threads()):
        raise ValueError(f"a slot is {int(slots.max())}, and the cache has {blocks * block_size}")
    return q


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    query_start: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> Tensor:
    """`reference.paged_attention`, with its arguments.

    Raises:
        ValueError: the lengths do not fit together, or the block table names a block that the cache does not have.
    """
    cpp, (tokens, heads, dim) = functions(), q.shape
    blocks, block_size, kv_heads, _ = k_cache.shape
    caches_fit = k_cache.is_contiguous() and v_cache.is_contiguous() and k_cache.dtype is v_cache.dtype
    if cpp is None or not _fit(dim, q, k_cache) or not caches_fit or heads > MAX_GROUP * kv_heads:
        places = query_start, context_lens, block_table
        return reference.paged_attention(q, k_cache, v_cache, *places, k_scale=k_scale, v_scale=v_scale)
    q, lists = q.contiguous(), [x.int().contiguous() for x in (query_start, context_lens, block_table)]
    out, (batch, width) = torch.empty_like(q), block_table.shape
    pointers = [x.data_ptr() for x in (q, k_cache, v_cache, *lists, out)]
    types = BF16_ACTIVATIONS[q.dtype] | BF16_OTHER[k_cache.dtype]
    sizes = (tokens, batch, heads, kv_heads, dim, block_size, width, blocks)
    if cpp.paged_attention(types, *pointers, *sizes, torch.get_num_threads()):
        raise ValueError("query_start, context_lens and block_table do not fit together, or name blocks not there")
    return out


def silu_mul(gate_up: Tensor) -> Tensor:
    """`reference.silu_mul`. [..., 2·I] -> [..., I]."""
    cpp, size = functions(), gate_up.shape[-1] // 2
    if cpp is None or not _fit(size, gate_up):
        return reference.silu_mul(gate_up)
    gate_up = gate_up.contiguous()
    out, is_bf16 = gate_up.new_empty(*gate_up.shape[:-1], size), BF16_ACTIVATIONS[gate_up.dtype]
    cpp.silu_mul(is_bf16, gate_up.data_ptr(), out.data_ptr(), out.numel() // size, size, torch.get_num_threads())
    return out


def argmax(logits: Tensor) -> Tensor:
    """`reference.argmax`. [R, V] -> [R] int64."""
    cpp = functions()
    if cpp is None or logits.dtype is not torch.float32:
        return reference.argmax(logits)
    logits = logits.contiguous()
    out = torch.empty(logits.shape[0], dtype=torch.int64)
    cpp.argmax(logits.data_ptr(), out.data_ptr(), *logits.shape, torch.get_num_threads())
    return out


def _fit(row: int, *tensors: Tensor) -> bool:
    """Whether the C++ knows these types, and rows of that length."""
    return row % STEP == 0 and all(x.dtype in BF16_ACTIVATIONS for x in tensors)
