"""What is done to each row alone: norms, SiLU, rotary embedding with the store of keys and values.

All are bound by memory: each row is read once, kept in registers, and written once. Sums are float32, and results are
rounded where `reference` rounds them.
"""

# ruff: noqa: ANN001, ANN201, N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from miniserve.kernels.scaled_gemm import Rows

ELEMENTS = 2048  # that a program of four warps takes at a time
E4M3_MAX = tl.constexpr(448.0)
INT8_MAX = tl.constexpr(127.0)
LEAST_SCALE = tl.constexpr(1e-30)
# A float32 has no bits for fractions beyond 2^23: added and taken off again, this rounds to the nearest, ties to even.
ROUNDING = tl.constexpr(1.5 * 2.0**23)


@triton.jit(do_not_specialize=["num_rows", "inner"])
def norm_kernel(
    x_ptr, residual_ptr, weight_ptr, out_ptr, num_rows, inner, stride_outer, stride_inner, stride_residual, eps,
    ADD: tl.constexpr, ROWS: tl.constexpr, H: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """ROWS rows of H elements; row r is x[r // inner, r % inner]. ADD: to the residual first, in place."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, SIZE)
    there = (rows < num_rows)[:, None] & (columns < H)[None, :]
    wide_rows = rows.to(tl.int64)
    at = (wide_rows // inner * stride_outer + wide_rows % inner * stride_inner)[:, None] + columns[None, :]
    x = tl.load(x_ptr + at, mask=there, other=0.0)
    if ADD:
        stream = residual_ptr + wide_rows[:, None] * stride_residual + columns[None, :]
        x = (tl.load(stream, mask=there, other=0.0).to(tl.float32) + x.to(tl.float32)).to(x.dtype)
        tl.store(stream, x, mask=there)
    wide = x.to(tl.float32)
    normed = wide * tl.rsqrt(tl.sum(wide * wide, 1) / H + eps)[:, None]
    weight = tl.load(weight_ptr + columns, mask=columns < H, other=0.0).to(tl.float32)
    y = normed.to(x.dtype).to(tl.float32) * weight[None, :]
    tl.store(out_ptr + wide_rows[:, None] * H + columns[None, :], y.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def silu_mul_kernel(x_ptr, out_ptr, stride_x, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK columns of a row. Grid: (rows, I / BLOCK)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = columns < SIZE
    gate = tl.load(x_ptr + row * stride_x + columns, mask=there, other=0.0)
    up = tl.load(x_ptr + row * stride_x + SIZE + columns, mask=there, other=0.0)
    wide = gate.to(tl.float32)
    active = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    y = active.to(tl.float32) * up.to(tl.float32)
    tl.store(out_ptr + row * SIZE + columns, y.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def rope_store_kernel(
    qkv_ptr, cos_ptr, sin_ptr, q_ptr, k_ptr, v_ptr, slot_ptr, k_scale_ptr, v_scale_ptr,
    stride_token, stride_block, stride_slot, stride_head,
    SCALED: tl.constexpr, N: tl.constexpr, G: tl.constexpr, SLOTS: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr,
    HEADS: tl.constexpr,
):  # fmt: skip
    """HEADS of a token's N + 2 G heads, whichever of queries, keys and values they are. Grid: (T, heads / HEADS).

    SCALED: keys and values are stored in 8 bits, and their scales to k_scale and v_scale [P, G, S].
    """
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    pairs = tl.arange(0, HALF)
    is_pair = (pairs < D // 2)[None, :]
    there = (heads < N + 2 * G)[:, None] & is_pair
    at = qkv_ptr + token * stride_token + heads[:, None] * D + pairs[None, :]
    first = tl.load(at, mask=there, other=0.0).to(tl.float32)
    second = tl.load(at + D // 2, mask=there, other=0.0).to(tl.float32)
    cos = tl.load(cos_ptr + token * (D // 2) + pairs, mask=pairs < D // 2, other=0.0)[None, :]
    sin = tl.load(sin_ptr + token * (D // 2) + pairs, mask=pairs < D // 2, other=0.0)[None, :]
    is_value = (heads >= N + G)[:, None]
    turned_first = tl.where(is_value, first, first * cos - second * sin)
    turned_second = tl.where(is_value, second, second * cos + first * sin)
    is_query = (heads < N)[:, None] & is_pair
    q_at = q_ptr + token * (N * D) + heads[:, None] * D + pairs[None, :]
    tl.store(q_at, turned_first.to(q_ptr.dtype.element_ty), mask=is_query)
    tl.store(q_at + D // 2, turned_second.to(q_ptr.dtype.element_ty), mask=is_query)
    slot = tl.load(slot_ptr + token)
    row = slot // SLOTS * stride_block + slot % SLOTS * stride_slot
    is_key = there & (heads >= N)[:, None] & ~is_value & (slot >= 0)
    is_value = there & is_value & (slot >= 0)
    kv_head = tl.where(heads < N + G, heads - N, heads - N - G)
    if SCALED:
        is_int8: tl.constexpr = k_ptr.dtype.element_ty == tl.int8
        most: tl.constexpr = INT8_MAX if is_int8 else E4M3_MAX
        largest = tl.max(tl.maximum(tl.abs(turned_first), tl.abs(turned_second)), 1)
        scale = tl.maximum(largest / most, LEAST_SCALE)
        scale_at = (slot // SLOTS * G + kv_head) * SLOTS + slot % SLOTS
        is_stored = (heads >= N) & (heads < N + 2 * G) & (slot >= 0)
        tl.store(k_scale_ptr + scale_at, scale, mask=is_stored & (heads < N + G))
        tl.store(v_scale_ptr + scale_at, scale, mask=is_stored & (heads >= N + G))
        turned_first = tl.clamp(turned_first / scale[:, None], -most, most)
        turned_second = tl.clamp(turned_second / scale[:, None], -most, most)
        if is_int8:
            turned_first = turned_first + ROUNDING - ROUNDING
            turned_second = turned_second + ROUNDING - ROUNDING
    stored_first, stored_second = (
        turned_first.to(k_ptr.dtype.element_ty),
        turned_second.to(k_ptr.dtype.element_ty),
    )
    cache_at = row + kv_head[:, None] * stride_head + pairs[None, :]
    tl.store(k_ptr + cache_at, stored_first, mask=is_key)
    tl.store(k_ptr + cache_at + D // 2, stored_second, mask=is_key)
    tl.store(v_ptr + cache_at, stored_first, mask=is_value)
    tl.store(v_ptr + cache_at + D // 2, stored_second, mask=is_value)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`reference.rms_norm`, in x's dtype. x may be a view that leaves out columns. [..., H], [H] -> [..., H]."""
    return _norm(x, None, weight, eps)


def add_rms_norm(residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`reference.add_rms_norm`, with its arguments.

    Raises:
        ValueError: shapes or dtypes differ.
    """
    if x.dtype is not residual.dtype or x.shape != residual.shape:
        raise ValueError(f"x is {x.dtype} {list(x.shape)}, the residual {residual.dtype} {list(residual.shape)}")
    return _norm(x, residual, weight, eps)


def _norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    size = x.shape[-1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    num_rows = out.numel() // size
    if num_rows == 0:
        return out
    if x.dim() > 3 or x.stride(-1) != 1:
        x = x.contiguous().view(-1, size)
    inner = x.shape[1] if x.dim() == 3 else 1
    stride_outer, stride_inner = (x.stride(0), x.stride(1)) if x.dim() == 3 else (x.stride(0), 0)
    stream = out if residual is None else residual.view(-1, size)
    padded = triton.next_power_of_2(size)
    rows = max(1, min(triton.next_power_of_2(num_rows), ELEMENTS // padded))
    norm_kernel[(triton.cdiv(num_rows, rows),)](
        x, stream, weight, out, num_rows, inner, stride_outer, stride_inner, stream.stride(0), eps,
        ADD=residual is not None, ROWS=rows, H=size, SIZE=padded, num_warps=4 if padded <= ELEMENTS else 8,
    )  # fmt: skip
    return out


def silu_mul(gate_up: Tensor) -> Tensor:
    """`reference.silu_mul`. [..., 2·I] -> [..., I]."""
    size = gate_up.shape[-1] // 2
    gate_up = gate_up.contiguous()
    out = gate_up.new_empty(*gate_up.shape[:-1], size)
    block = min(1024, triton.next_power_of_2(size))
    if rows := out.numel() // size:
        silu_mul_kernel[(rows, triton.cdiv(size, block))](gate_up, out, 2 * size, SIZE=size, BLOCK=block, num_warps=4)
    return out


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
    """`reference.rope_store`, with its arguments. A slot behind the cache's end is not noticed."""
    (_, block_size, kv_heads, dim), tokens = k_cache.shape, qkv.shape[0]
    heads = qkv.shape[1] - 2 * kv_heads
    qkv, cos, sin = qkv.contiguous(), cos.contiguous(), sin.contiguous()
    q = qkv.new_empty(tokens, heads, dim)
    half = triton.next_power_of_2(dim // 2)
    per_program = max(1, min(triton.next_power_of_2(heads + 2 * kv_heads), ELEMENTS // (4 * half)))
    scales = (qkv, qkv) if k_scale is None or v_scale is None else (k_scale, v_scale)
    if tokens:
        rope_store_kernel[(tokens, triton.cdiv(heads + 2 * kv_heads, per_program))](
            qkv, cos, sin, q, k_cache, v_cache, slots, *scales,
            qkv.stride(0), k_cache.stride(0), k_cache.stride(1), k_cache.stride(2),
            SCALED=k_scale is not None, N=heads, G=kv_heads, SLOTS=block_size, D=dim, HALF=half, HEADS=per_program,
            num_warps=4,
        )  # fmt: skip
    return q


@triton.jit
def round_rows_kernel(x_ptr, out_ptr, scale_ptr, stride_x, K: tl.constexpr, BLOCK: tl.constexpr):
    """One row, read twice: for its largest magnitude, then to divide by it. Grid: (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    largest = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, K, BLOCK):
        x = tl.load(x_ptr + row * stride_x + start + at, mask=at < K - start, other=0.0)
        largest = tl.maximum(largest, tl.abs(x.to(tl.float32)))
    scale = tl.maximum(tl.max(largest, 0) / E4M3_MAX, 1e-30)
    tl.store(scale_ptr + row, scale)
    for start in range(0, K, BLOCK):
        x = tl.load(x_ptr + row * stride_x + start + at, mask=at < K - start, other=0.0)
        q = tl.minimum(tl.maximum(x.to(tl.float32) / scale, -E4M3_MAX), E4M3_MAX)
        tl.store(out_ptr + row * K + start + at, q.to(out_ptr.dtype.element_ty), mask=at < K - start)


def rounded_rows(x: Tensor) -> Rows:
    """Activations rounded to E4M3 with a scale a row: [T, K] bfloat16 or float16. See `scaled_gemm.quantise_rows`."""
    count, size = x.shape
    data = torch.empty(count, size, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(count, 1, dtype=torch.float32, device=x.device)
    block = min(ELEMENTS, triton.next_power_of_2(size))
    round_rows_kernel[(count,)](x, data, scales, x.stride(0), K=size, BLOCK=block)
    return Rows(data, scales)


@triton.jit
def expand_rows_kernel(codes_ptr, scale_ptr, out_ptr, K: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK elements of a row. Grid: (rows, K / BLOCK)."""
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    codes = tl.load(codes_ptr + row * K + at, mask=at < K, other=0)
    wide = codes.to(tl.float32) * tl.load(scale_ptr + row)
    tl.store(out_ptr + row * K + at, wide.to(out_ptr.dtype.element_ty), mask=at < K)


def expanded_rows(rows: Rows, dtype: torch.dtype) -> Tensor:
    """What INT8 codes [R, K] stand for, rounded to `dtype`: bfloat16, float16 or float32.

    It is a product of two types, of which torch's own goes through memory far more slowly.
    """
    codes, scales = rows
    (count, size), block = codes.shape, min(ELEMENTS, triton.next_power_of_2(codes.shape[1]))
    out = torch.empty(count, size, dtype=dtype, device=codes.device)
    expand_rows_kernel[(count, triton.cdiv(size, block))](codes, scales, out, K=size, BLOCK=block)
    return out
