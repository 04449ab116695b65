"""Paged attention on the device: one inner loop, `_attend`, under two launches.

`prefill_kernel`: a program has BLOCK_Q query tokens of a sequence, with all query heads that share one key/value head,
and goes over the cache up to the last key that its tokens see. `decode_kernel`: a program has one sequence's only new
token, the heads that share one key/value head, and one slice of the cache; `combine_kernel` joins the slices. The
softmax is taken piece by piece (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"; Dao 2023,
"FlashAttention-2"), in float32 and base 2. Slots that a sequence does not own are never read.

SCALED: the cache has 8 bits, and scales [P, G, S] beside. A key's stands outside its product with a query, and is
multiplied with the score; a value's goes to its weight. Over E4M3 the products are float16's, which a GPU makes of E4M3
in one step, and exactly; over INT8 they are the queries' own.

Rows of a tile are tokens times heads: row m is token m // HEADS and head m % HEADS of the group, padded to powers of 2.
"""

# ruff: noqa: ANN001, ANN201, ANN202, N803, N806, E741
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def _blocks(table_ptr, start, hi, length, SLOTS: tl.constexpr, TILE: tl.constexpr):
    """The blocks that the tile from `start` on lies in: one, or one a position where tiles do not fit blocks."""
    if SLOTS % TILE == 0:
        block = tl.load(table_ptr + start // SLOTS, mask=start < hi, other=0)
    else:
        positions = start + tl.arange(0, TILE)
        block = tl.load(table_ptr + positions // SLOTS, mask=(positions < length) & (start < hi), other=0)
    return block.to(tl.int64)


@triton.jit
def _for_products(q, k_ptr):
    """q in the type that products are computed in."""
    if k_ptr.dtype.element_ty == tl.float8e4nv:
        q = q.to(tl.float16)
    return q


@triton.jit
def _largest_code(k_ptr):
    """Of the cache's type: with it a value's scale is as large as the value, and no weight too small for float16."""
    if k_ptr.dtype.element_ty == tl.int8:
        return 127.0
    return 448.0


@triton.jit
def _attend(
    q, q_pos, acc, m, l, lo, hi, length, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table_ptr,
    stride_block, stride_slot, stride_scale, scale,
    SCALED: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr, STAGES: tl.constexpr, SLOTS: tl.constexpr,
    TILE: tl.constexpr, D: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Take the cache's positions from lo to hi into (acc, m, l): sums [M, DIM], maximum and normaliser [M], log2.

    Not MASKED: hi - lo is whole tiles, and every row sees all of them. Else keys from `length` on, and with CAUSAL
    those behind a row's own position, are left out; each row must have seen a key by the end of its first tile.
    STAGES: tiles in flight; None: the launch's. SCALED: sums are to be divided by `_largest_code`.
    """
    dims = tl.arange(0, DIM)
    block = _blocks(table_ptr, lo, hi, length, SLOTS, TILE)
    for start in tl.range(lo, hi, TILE, num_stages=STAGES):
        positions = start + tl.arange(0, TILE)
        rows = block * stride_block + (positions % SLOTS) * stride_slot
        scales_at = block * stride_scale + positions % SLOTS
        # The next tile's, a tile ahead: loads that wait for another load of their own pass are not pipelined deeply.
        block = _blocks(table_ptr, start + TILE, hi, length, SLOTS, TILE)
        at = rows[:, None] + dims[None, :]
        if MASKED:
            there = (positions < length)[:, None] & (dims < D)[None, :]
            k, v = tl.load(k_ptr + at, mask=there, other=0.0), tl.load(v_ptr + at, mask=there, other=0.0)
        elif D == DIM:
            k, v = tl.load(k_ptr + at), tl.load(v_ptr + at)
        else:
            there = (dims < D)[None, :]
            k, v = tl.load(k_ptr + at, mask=there, other=0.0), tl.load(v_ptr + at, mask=there, other=0.0)
        scores = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision="ieee")
        if SCALED:
            owned = positions < length
            scores *= tl.load(k_scale_ptr + scales_at, mask=owned, other=0.0)[None, :]
        if MASKED:
            seen = (positions < length)[None, :]
            if CAUSAL:
                seen = seen & (positions[None, :] <= q_pos[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        highest = tl.maximum(m, tl.max(scores, 1) * scale)
        weights = tl.exp2(scores * scale - highest[:, None])
        shrink = tl.exp2(m - highest)
        l = l * shrink + tl.sum(weights, 1)
        if SCALED:
            v_scale = tl.load(v_scale_ptr + scales_at, mask=owned, other=0.0)
            weights *= (v_scale * _largest_code(k_ptr))[None, :]
        acc = tl.dot(weights.to(q.dtype), v.to(q.dtype), acc * shrink[:, None], input_precision="ieee")
        m = highest
    return acc, m, l


@triton.jit(do_not_specialize=["num_sequences", "num_tokens", "stride_table"])
def prefill_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, start_ptr, length_ptr, table_ptr, k_scale_ptr, v_scale_ptr,
    num_sequences, num_tokens, stride_token, stride_out, stride_table, stride_block, stride_slot, stride_head,
    stride_scale, scale,
    LEAVE_ONES: tl.constexpr, SCALED: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr, BLOCK_Q: tl.constexpr,
    SLOTS: tl.constexpr, TILE: tl.constexpr, D: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """One tile of BLOCK_Q query tokens and one key/value head. Grid: (T // BLOCK_Q + B + 1, G).

    Sequence b's tiles begin at tile query_start[b] // BLOCK_Q + b, which leaves room for each one's last, partial tile;
    so a tile finds its sequence by bisection, and the host need not know any length. The rows behind the last sequence
    count as one more, of length 0. LEAVE_ONES: sequences of one new token are `decode_kernel`'s.
    """
    kv_head = tl.program_id(1)  # one after the other: a head's keys and values stay in the L2 cache
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the last tiles see most: they start first
    low = tl.full([], 0, tl.int32)
    high = num_sequences
    while low < high:
        middle = (low + high + 1) // 2
        if tl.load(start_ptr + middle) // BLOCK_Q + middle <= tile:
            low = middle
        else:
            high = middle - 1
    is_real = low < num_sequences
    first = tl.load(start_ptr + low)
    count = tl.load(start_ptr + low + 1, mask=is_real, other=num_tokens) - first
    length = tl.load(length_ptr + low, mask=is_real, other=0)
    begin = (tile - (first // BLOCK_Q + low)) * BLOCK_Q
    if begin >= count:
        return
    if LEAVE_ONES and is_real and count == 1:
        return
    M: tl.constexpr = BLOCK_Q * HEADS
    rows = tl.arange(0, M)
    token, head = begin + rows // HEADS, rows % HEADS
    dims = tl.arange(0, DIM)
    there = ((token < count) & (head < GROUP))[:, None] & (dims < D)[None, :]
    heads = (kv_head * GROUP + head)[:, None] * D + dims[None, :]
    at = (first + token).to(tl.int64)[:, None]
    q = _for_products(tl.load(q_ptr + at * stride_token + heads, mask=there, other=0.0), k_ptr)
    past = length - count
    q_pos = past + token
    acc = tl.zeros([M, DIM], tl.float32)
    m = tl.full([M], float("-inf"), tl.float32)
    l = tl.zeros([M], tl.float32)
    k_head, v_head = k_ptr + kv_head * stride_head, v_ptr + kv_head * stride_head
    k_scales, v_scales = k_scale_ptr + kv_head * SLOTS, v_scale_ptr + kv_head * SLOTS
    table = table_ptr + low.to(tl.int64) * stride_table
    end = tl.where(length > 0, tl.minimum(length, past + begin + BLOCK_Q), 0)
    seen_by_all = tl.maximum(tl.minimum(past + begin + 1, end), 0) // TILE * TILE
    acc, m, l = _attend(
        q, q_pos, acc, m, l, 0, seen_by_all, length, k_head, v_head, k_scales, v_scales, table,
        stride_block, stride_slot, stride_scale, scale, SCALED, False, True, None, SLOTS, TILE, D, DIM,
    )  # fmt: skip
    # The few tiles with a mask one by one: in flight, they would make ptxas serialise the products of those without.
    acc, m, l = _attend(
        q, q_pos, acc, m, l, seen_by_all, end, length, k_head, v_head, k_scales, v_scales, table,
        stride_block, stride_slot, stride_scale, scale, SCALED, True, True, 1, SLOTS, TILE, D, DIM,
    )  # fmt: skip
    weight = 1.0 / tl.where(l > 0, l, 1.0)
    if SCALED:
        weight /= _largest_code(k_ptr)
    tl.store(out_ptr + at * stride_out + heads, (acc * weight[:, None]).to(out_ptr.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["stride_table"])
def decode_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, part_ptr, m_ptr, l_ptr, start_ptr, length_ptr, table_ptr, k_scale_ptr, v_scale_ptr,
    stride_token, stride_out, stride_table, stride_block, stride_slot, stride_head, stride_scale, scale,
    ONE_SLICE: tl.constexpr, SCALED: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr,
    SLOTS: tl.constexpr, TILE: tl.constexpr, D: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """One slice of one sequence's cache for one key/value head. Grid: (G, slices, B), whatever the lengths are.

    With ONE_SLICE the result goes to out; else its sums, maximum and normaliser go to part [B, N, slices, D], m and l
    [B, N, slices] for `combine_kernel`. Sequences that do not have exactly one new token are left alone.
    """
    kv_head, split, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = tl.load(start_ptr + row)
    length = tl.load(length_ptr + row)
    if tl.load(start_ptr + row + 1) - first != 1:
        return
    num_slices = tl.num_programs(1)
    per = tl.cdiv(tl.cdiv(length, num_slices), TILE) * TILE  # whole tiles
    lo = split * per
    hi = tl.minimum(lo + per, length)
    heads = tl.arange(0, HEADS)
    dims = tl.arange(0, DIM)
    there = (heads < GROUP)[:, None] & (dims < D)[None, :]
    at = (kv_head * GROUP + heads)[:, None] * D + dims[None, :]
    q = _for_products(tl.load(q_ptr + first.to(tl.int64) * stride_token + at, mask=there, other=0.0), k_ptr)
    acc = tl.zeros([HEADS, DIM], tl.float32)
    m = tl.full([HEADS], float("-inf"), tl.float32)
    l = tl.zeros([HEADS], tl.float32)
    k_head, v_head = k_ptr + kv_head * stride_head, v_ptr + kv_head * stride_head
    k_scales, v_scales = k_scale_ptr + kv_head * SLOTS, v_scale_ptr + kv_head * SLOTS
    table = table_ptr + row.to(tl.int64) * stride_table
    acc, m, l = _attend(
        q, heads, acc, m, l, lo, hi, length, k_head, v_head, k_scales, v_scales, table,
        stride_block, stride_slot, stride_scale, scale, SCALED, True, False, None, SLOTS, TILE, D, DIM,
    )  # fmt: skip
    if SCALED:
        acc /= _largest_code(k_ptr)
    if ONE_SLICE:
        acc = acc / tl.where(l > 0, l, 1.0)[:, None]
        tl.store(out_ptr + first.to(tl.int64) * stride_out + at, acc.to(out_ptr.dtype.element_ty), mask=there)
    else:
        num_heads = tl.num_programs(0) * GROUP
        slices = (row * num_heads + kv_head * GROUP + heads) * num_slices + split
        tl.store(m_ptr + slices, m, mask=heads < GROUP)
        tl.store(l_ptr + slices, l, mask=heads < GROUP)
        tl.store(part_ptr + slices.to(tl.int64)[:, None] * D + dims[None, :], acc, mask=there & (hi > lo))


@triton.jit(do_not_specialize=["num_slices"])
def combine_kernel(
    part_ptr, m_ptr, l_ptr, out_ptr, start_ptr, stride_out, num_slices,
    PADDED: tl.constexpr, D: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Join the slices of one sequence and one query head. Grid: (N, B)."""
    head, row = tl.program_id(0), tl.program_id(1)
    first = tl.load(start_ptr + row)
    if tl.load(start_ptr + row + 1) - first != 1:
        return
    slices = (row * tl.num_programs(0) + head) * num_slices + tl.arange(0, PADDED)
    dims = tl.arange(0, DIM)
    is_slice = tl.arange(0, PADDED) < num_slices
    m = tl.load(m_ptr + slices, mask=is_slice, other=float("-inf"))
    highest = tl.max(m, 0)
    weights = tl.exp2(m - tl.where(highest == float("-inf"), 0.0, highest))  # all 0 for a sequence of length 0
    l = tl.sum(tl.load(l_ptr + slices, mask=is_slice, other=0.0) * weights, 0)
    parts_at = slices.to(tl.int64)[:, None] * D + dims[None, :]
    parts = tl.load(part_ptr + parts_at, mask=is_slice[:, None] & (dims < D)[None, :], other=0.0)
    parts = tl.where((m > float("-inf"))[:, None], parts, 0.0)  # of an empty slice nobody has written the sums
    out = tl.sum(parts * weights[:, None], 0) / tl.where(l > 0, l, 1.0)
    at = first.to(tl.int64) * stride_out + head * D + dims
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=dims < D)
