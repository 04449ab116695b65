"""`paged_attention`: which attention kernels a batch needs, in what tiles, launched without waiting for the device.

A batch of as many tokens as sequences is a step of decodes. Any other may hold both kinds of sequences: both kernels
are launched, and each leaves the other's alone. Keys and values may be E4M3 or INT8 with a scale for each head of each
token; over E4M3 the products are float16's, whose largest number is 65504.
"""

import math

import torch
import triton
from torch import Tensor

from miniserve.kernels.triton.attention_kernels import combine_kernel, decode_kernel, prefill_kernel
from miniserve.kernels.triton.configs import (
    AttentionConfig,
    capability,
    decode_config,
    multiprocessors,
    num_splits,
    prefill_config,
)

LOG2_E = 1.4426950408889634
SHORTEST = 16  # side of a product on tensor cores


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
    prefill: AttentionConfig | None = None,
    decode: AttentionConfig | None = None,
    splits: int | None = None,
) -> Tensor:
    """`reference.paged_attention`, with its arguments and these.

    Where there are as many rows of q as sequences, each sequence has exactly one: nobody checks.

    Args:
        q, k_cache, v_cache, query_start, context_lens, block_table: the reference's; the last three int32, a cache's
            block size a multiple of 16 unless the tile is smaller.
        k_scale, v_scale: the reference's, contiguous; both or none.
        prefill, decode, splits: tiles and slices other than those of `configs`.
    """
    tokens, heads, dim = q.shape
    (batch, width), (_, slots, kv_heads, _) = block_table.shape, k_cache.shape
    q, out = _rows(q), q.new_empty(tokens, heads, dim)
    if tokens == 0:
        return out
    padded_dim = max(SHORTEST, triton.next_power_of_2(dim))
    of, row_bytes = capability(q.device), padded_dim * max(q.itemsize, k_cache.itemsize)
    only_ones = tokens == batch
    group = heads // kv_heads
    caches = k_cache, v_cache
    strides = block_table.stride(0), k_cache.stride(0), k_cache.stride(1), k_cache.stride(2)
    scales = (q, q) if k_scale is None or v_scale is None else (k_scale, v_scale)
    stride_scale = 0 if k_scale is None else k_scale.stride(0)
    shape = {"GROUP": group, "SLOTS": slots, "D": dim, "DIM": padded_dim}
    shape |= {"SCALED": k_scale is not None}
    scale = LOG2_E / math.sqrt(dim)
    if not only_ones:
        config = prefill or prefill_config(of, row_bytes)
        padded = triton.next_power_of_2(group)
        block_q = max(1, max(config.rows, SHORTEST) // padded)
        prefill_kernel[(tokens // block_q + batch + 1, kv_heads)](
            q, *caches, out, query_start, context_lens, block_table, *scales,
            batch, tokens, q.stride(0), out.stride(0), *strides, stride_scale, scale,
            LEAVE_ONES=batch > 1, HEADS=padded, BLOCK_Q=block_q, TILE=config.tile, **shape,
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    if only_ones or batch > 1:
        config = decode or decode_config(of, row_bytes, eight_bits=k_cache.itemsize == 1)
        splits = splits or num_splits(batch * kv_heads, width * slots, config.tile, multiprocessors(q.device))
        part = torch.empty(batch, heads, splits, dim if splits > 1 else 0, dtype=torch.float32, device=q.device)
        maxima, sums = torch.empty(2, batch, heads, splits, dtype=torch.float32, device=q.device)
        decode_kernel[(kv_heads, splits, batch)](
            q, *caches, out, part, maxima, sums, query_start, context_lens, block_table, *scales,
            q.stride(0), out.stride(0), *strides, stride_scale, scale,
            HEADS=max(SHORTEST, triton.next_power_of_2(group)), ONE_SLICE=splits == 1, TILE=config.tile, **shape,
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
        if splits > 1:
            combine_kernel[(heads, batch)](
                part, maxima, sums, out, query_start, out.stride(0), splits,
                PADDED=triton.next_power_of_2(splits), D=dim, DIM=padded_dim, num_warps=4,
            )  # fmt: skip
    return out


def _rows(q: Tensor) -> Tensor:
    """q with its heads in one row each token, which it has unless it is an unusual view."""
    return q if q.stride(2) == 1 and q.stride(1) == q.shape[2] else q.contiguous()
