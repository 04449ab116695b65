"""Paged attention in C++ against the reference, and what must not change a row's bits: batch, chunks, threads, blocks."""

import itertools

import pytest
import torch

from miniserve.kernels import reference
from miniserve.kernels.cpu import ops

pytestmark = pytest.mark.usefixtures("compiled")
LENGTHS = [1, 31, 32, 33, 64, 512, 513, 700, 1000]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(
    lengths, new, *, block_size=16, kv_heads=2, group=3, dim=64, dtype=torch.float32, cache=torch.float32, seed=0
):
    """Arguments of `paged_attention`. What no sequence owns is NaN, and no block is the last of its table's row."""
    blocks = [-(-length // block_size) for length in lengths]
    order = torch.randperm(sum(blocks) + 3, generator=torch.Generator().manual_seed(seed))
    k_cache = torch.full((len(order), block_size, kv_heads, dim), torch.nan, dtype=cache)
    v_cache = k_cache.clone()
    table = torch.full((len(lengths), max(blocks, default=0) + 1), 10**6, dtype=torch.int32)
    owned = order.split([*blocks, 3])
    for row, (length, mine) in enumerate(zip(lengths, owned, strict=False)):
        slots = (mine[:, None] * block_size + torch.arange(block_size)).flatten()[:length]
        for which, paged in enumerate((k_cache, v_cache)):
            # A sequence's content depends on its length alone: the same one can be in several batches.
            paged.flatten(0, 1)[slots] = draw(length, kv_heads, dim, seed=2 * length + which).to(cache)
        table[row, : len(mine)] = mine
    queries = [
        draw(length, kv_heads * group, dim, seed=-length)[length - n :] for length, n in zip(lengths, new, strict=True)
    ]
    starts = torch.tensor([0, *itertools.accumulate(new)], dtype=torch.int32)
    q = torch.cat(queries).to(dtype) if queries else draw(0, kv_heads * group, dim)
    return q, k_cache, v_cache, starts, torch.tensor(lengths, dtype=torch.int32), table


@pytest.mark.parametrize("dim", [16, 32, 64, 80, 128, 256])
@pytest.mark.parametrize("group", [1, 3, 4, 8])
@pytest.mark.parametrize("block_size", [1, 16, 64])
def test_equals_the_reference(dim, group, block_size):
    new = [1, 1, 32, 1, 7, 1, 2, 13, 50]
    arguments = batch(LENGTHS, new, dim=dim, group=group, block_size=block_size)
    assert (ops.paged_attention(*arguments) - reference.paged_attention(*arguments)).abs().max() < 1e-5


@pytest.mark.parametrize("lengths", [[600], [2000], [1, 1], [33, 1200]])
def test_whole_prompts(lengths):
    arguments = batch(lengths, lengths)
    assert (ops.paged_attention(*arguments) - reference.paged_attention(*arguments)).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cache", [torch.float32, torch.bfloat16])
def test_every_mix_of_types(dtype, cache):
    q, k_cache, v_cache, *rest = batch(LENGTHS, [1, 1, 32, 1, 7, 1, 2, 13, 50], dtype=dtype, cache=cache)
    expected = reference.paged_attention(q.float(), k_cache.float(), v_cache.float(), *rest)
    got = ops.paged_attention(q, k_cache, v_cache, *rest)
    assert got.dtype is dtype
    assert (got.float() - expected).abs().max() < (1e-5 if dtype is torch.float32 else 1e-2)


def test_scores_far_apart():
    """Weights of 1 and of 0, and no overflow on the way."""
    q, *rest = batch([700, 40], [5, 1])
    assert (ops.paged_attention(q * 300, *rest) - reference.paged_attention(q * 300, *rest)).abs().max() < 1e-4


def test_rows_of_nobody_are_zero():
    q, k_cache, v_cache, starts, lengths, table = batch([40, 1, 700], [3, 1, 2])
    q = torch.cat((draw(2, *q.shape[1:]), q, draw(3, *q.shape[1:])))
    starts = torch.cat((starts + 2, starts[-1:] + 3))
    lengths, table = torch.cat((lengths, torch.zeros(1, dtype=torch.int32))), torch.cat((table, table[:1]))
    got = ops.paged_attention(q, k_cache, v_cache, starts, lengths, table)
    assert torch.equal(got[:2], torch.zeros_like(got[:2]))
    assert torch.equal(got[-3:], torch.zeros_like(got[-3:]))
    assert (got - reference.paged_attention(q, k_cache, v_cache, starts, lengths, table)).abs().max() < 1e-5


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_same_bits_alone_and_in_a_batch(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = ops.paged_attention(*batch(LENGTHS * 3, [1] * 3 * len(LENGTHS), seed=1))
        for row, length in enumerate(LENGTHS):
            alone = ops.paged_attention(*batch([length], [1], block_size=1 + row % 3, seed=row))
            assert torch.equal(together[row], alone[0]), length
    finally:
        torch.set_num_threads(before)


def test_the_same_bits_in_chunks_and_at_once():
    """A chunk's queries see what they saw when the whole prompt was computed, or when each token was decoded."""
    at_once = ops.paged_attention(*batch([1000], [1000]))
    q, k_cache, v_cache, _, _, table = batch([1000], [1000])
    for begin, end in [(0, 1), (0, 7), (7, 500), (500, 777), (511, 514), (999, 1000)]:
        chunk = q[begin:end].contiguous(), k_cache, v_cache
        sizes = torch.tensor([0, end - begin], dtype=torch.int32), torch.tensor([end], dtype=torch.int32)
        assert torch.equal(ops.paged_attention(*chunk, *sizes, table), at_once[begin:end]), (begin, end)


def test_queries_may_be_a_view():
    q, *rest = batch([40, 50], [3, 1])
    wide = torch.cat((q, q), dim=1)[:, : q.shape[1]]
    assert torch.equal(ops.paged_attention(wide, *rest), ops.paged_attention(q, *rest))


def test_no_sequences():
    q, k_cache, v_cache, *_ = batch([20], [1])
    nothing = torch.zeros(1, dtype=torch.int32), torch.zeros(0, dtype=torch.int32), torch.zeros(0, 4, dtype=torch.int32)
    assert torch.equal(ops.paged_attention(q, k_cache, v_cache, *nothing), torch.zeros_like(q))
    assert ops.paged_attention(q[:0], k_cache, v_cache, *nothing).shape == (0, *q.shape[1:])


@pytest.mark.parametrize("dim", [8, 24])
def test_other_head_sizes_are_left_to_torch(dim):
    arguments = batch([40, 9], [3, 1], dim=dim)
    assert torch.equal(ops.paged_attention(*arguments), reference.paged_attention(*arguments))


@pytest.mark.parametrize("fault", ["block", "negative block", "table too narrow", "more queries than context"])
def test_nonsense_is_refused_before_it_is_read(fault):
    q, k_cache, v_cache, starts, lengths, table = batch([40, 50], [3, 1])
    if fault == "block":
        table[1, 0] = len(k_cache)
    if fault == "negative block":
        table[0, 2] = -1
    if fault == "table too narrow":
        lengths[1] = 16 * table.shape[1] + 1
    if fault == "more queries than context":
        lengths[0] = 2
    with pytest.raises(ValueError, match="do not fit together"):
        ops.paged_attention(q, k_cache, v_cache, starts, lengths, table)
