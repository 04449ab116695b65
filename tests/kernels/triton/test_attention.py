"""Paged attention in Triton against the reference in float64."""

import pytest
import torch

from miniserve.kernels.triton.attention import paged_attention
from miniserve.kernels.triton.configs import AttentionConfig
from support.paged import in_eight_bits, paged_batch, relative_error

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
# Tiles of a block, of two blocks, of half a block; None: the table's.
SMALL = [AttentionConfig(rows=16, tile=tile, warps=4, stages=2) for tile in (16, 32)]
BATCHES = {
    "decode": ([1, 37, 64, 16], [1, 1, 1, 1]),
    "prefill": ([45], [45]),
    "prefill with prefix": ([53, 50], [5, 33]),
    "mixed": ([5, 33, 1, 50, 64], [5, 1, 1, 20, 1]),
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    ("dtype", "heads", "kv_heads", "dim", "slots", "config"),
    [
        (torch.float32, 4, 2, 64, 16, SMALL[0]),
        (torch.float32, 3, 1, 80, 16, SMALL[1]),
        (torch.bfloat16, 8, 2, 128, 32, SMALL[0]),
        (torch.bfloat16, 2, 2, 96, 64, None),
        (torch.float16, 6, 2, 64, 16, SMALL[1]),
    ],
)
def test_equals_the_reference(batch, dtype, heads, kv_heads, dim, slots, config, device):
    lengths, news = BATCHES[batch]
    arguments = paged_batch(
        lengths, news, slots=slots, heads=heads, kv_heads=kv_heads, dim=dim, dtype=dtype, device=device
    )
    got = paged_attention(*arguments, prefill=config, decode=config, splits=3 if config else None)
    assert got.dtype is dtype
    assert relative_error(got, arguments.expected()) < TOLERANCE[dtype]


@pytest.mark.parametrize("splits", [1, 2, 8])
def test_slices_of_a_cache_join(splits, device):
    arguments = paged_batch([1, 130, 16, 47], [1] * 4, slots=16, device=device)
    assert relative_error(paged_attention(*arguments, splits=splits), arguments.expected()) < 1e-5


@pytest.mark.parametrize("news", [[1, 1, 1], [3, 1, 5]])
@pytest.mark.parametrize("splits", [1, 4])
def test_padded_rows_are_zeros(news, splits, device):
    """As in a CUDA graph for more sequences than there are: length 0, and rows that belong to no sequence."""
    batch = paged_batch([9, 0, 40], news, slots=16, dtype=torch.bfloat16, device=device)
    if news != [1, 1, 1]:
        batch = batch._replace(q=torch.cat((batch.q, batch.q[:7])))
    got = paged_attention(*batch, splits=splits)
    assert relative_error(got, batch.expected()) < 1e-2
    assert not got[news[0] : news[0] + news[1]].any()
    assert not got[sum(news) :].any()


def test_no_rows_at_all(device):
    arguments = paged_batch([9], [0], slots=16, device=device)
    assert paged_attention(*arguments).shape == (0, 4, 64)


def test_a_row_has_the_same_bits_alone_and_in_company(device):
    """With the same tiles and slices: what else is in a batch changes no sum."""
    lengths = [70, 3, 33, 16]
    batch = paged_batch(lengths, [1] * 4, slots=16, dtype=torch.bfloat16, device=device)
    together = paged_attention(*batch, splits=4)
    for row in range(4):
        start = torch.tensor([0, 1], dtype=torch.int32, device=device)
        alone = batch._replace(
            q=batch.q[row : row + 1],
            query_start=start,
            context_lens=batch.context_lens[row : row + 1],
            block_table=batch.block_table[row : row + 1],
        )
        assert torch.equal(paged_attention(*alone, splits=4)[0], together[row])


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    ("kv_dtype", "dtype", "slots", "config"),
    [
        (torch.float8_e4m3fn, torch.bfloat16, 16, SMALL[1]),
        (torch.int8, torch.bfloat16, 32, SMALL[0]),
        (torch.int8, torch.float16, 16, None),
    ],
)
def test_a_cache_of_eight_bits(batch, kv_dtype, dtype, slots, config, device):
    """As close to attention over what codes and scales stand for as over a cache of the queries' type."""
    wide = paged_batch(*BATCHES[batch], slots=slots, heads=8, dtype=dtype, device=device)
    narrow, scales, meant = in_eight_bits(wide, kv_dtype)
    got = paged_attention(*narrow, **scales, prefill=config, decode=config, splits=3 if config else None)
    assert relative_error(got, meant.expected()) < TOLERANCE[torch.bfloat16]


def test_small_values_do_not_vanish_from_float16(device):
    """Scales of 1e-6 would, multiplied with a weight of softmax."""
    wide = paged_batch([130], [1], slots=16, heads=8, dtype=torch.bfloat16, device=device)
    narrow, scales, meant = in_eight_bits(wide, torch.float8_e4m3fn)
    got = paged_attention(*narrow, k_scale=scales["k_scale"], v_scale=scales["v_scale"] * 1e-4)
    expected = meant._replace(v_cache=meant.v_cache * 1e-4).expected()
    assert relative_error(got, expected) < TOLERANCE[torch.bfloat16]


def test_large_scores_stay_finite(device):
    batch = paged_batch([40, 35], [1, 1], slots=16, device=device)
    batch = batch._replace(q=batch.q * 1e3)  # e to the power of these is beyond float32
    assert relative_error(paged_attention(*batch), batch.expected()) < 1e-2
