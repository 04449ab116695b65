"""The reference of paged attention, against attention of each sequence alone in contiguous memory."""

import pytest
import torch

from miniserve.kernels.reference import causal_attention, paged_attention, store_kv


def paged(lengths, news, block_size, heads=4, kv_heads=2, dim=8, seed=0):
    """Sequences of `lengths` tokens, the last `news` of each new; blocks scattered, unused slots poisoned with NaN."""
    generator = torch.Generator().manual_seed(seed)
    blocks_of = [-(-length // block_size) for length in lengths]
    total = sum(blocks_of) + 3
    order = torch.randperm(total, generator=generator).tolist()
    keys, values = (torch.full((total, block_size, kv_heads, dim), torch.nan) for _ in range(2))
    table = torch.zeros(len(lengths), max(blocks_of) + 2, dtype=torch.int32)
    past = []
    for row, length in enumerate(lengths):
        blocks = [order.pop() for _ in range(blocks_of[row])]
        table[row, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        k, v = (torch.randn(length, kv_heads, dim, generator=generator) for _ in range(2))
        slots = torch.tensor([blocks[p // block_size] * block_size + p % block_size for p in range(length)])
        store_kv(k, v, keys, values, slots)
        past.append((k, v))
    q = torch.randn(sum(news), heads, dim, generator=generator)
    start = torch.tensor([0, *torch.tensor(news).cumsum(0).tolist()], dtype=torch.int32)
    return q, keys, values, start, torch.tensor(lengths, dtype=torch.int32), table, past


@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize(("lengths", "news"), [([1], [1]), ([9, 1, 30], [1, 1, 1]), ([9, 16, 30], [9, 5, 1])])
def test_each_sequence_sees_its_own_past_and_nothing_else(lengths, news, block_size):
    q, keys, values, start, context, table, past = paged(lengths, news, block_size)
    out = paged_attention(q, keys, values, start, context, table)
    for row, (k, v) in enumerate(past):
        mine = slice(int(start[row]), int(start[row + 1]))
        torch.testing.assert_close(out[mine], causal_attention(q[mine], k, v))


def test_padding_writes_nothing_and_gives_zeros():
    keys, values = torch.zeros(2, 2, 4, 1, 8)
    k = torch.ones(3, 1, 8)
    store_kv(k, k, keys, values, torch.tensor([5, -1, -1]))
    assert keys.sum() == values.sum() == 8
    q = torch.randn(3, 2, 8)
    start, context = torch.tensor([0, 1, 2], dtype=torch.int32), torch.tensor([0, 0], dtype=torch.int32)
    assert not paged_attention(q, keys, values, start, context, torch.zeros(2, 1, dtype=torch.int32)).any()
