"""Batches that take turns: the whole's rows in order, and what attention sees of each is what it would see of all."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.core.executor import Scheduled, Step
from miniserve.core.request import Request
from miniserve.core.sampling_params import Limits
from miniserve.fleet.afd.exchange import share
from miniserve.fleet.afd.split import split
from miniserve.kernels import reference
from miniserve.runtime.batch import Batch

BLOCK = 4


def a_batch(parts):
    """Of requests with so many tokens in the cache, and so many new ones; blocks are handed out in turn."""
    scheduled, blocks = [], iter(range(1000))
    for cached, new in parts:
        request = Request("r", [1] * (cached + new), Limits(1))
        request.block_table.extend(next(blocks) for _ in range(-(-(cached + new) // BLOCK)))
        scheduled.append(Scheduled(request, cached, new))
    return Batch.from_step(Step(scheduled), BLOCK, torch.device("cpu"))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=5), st.integers(1, 6))
def test_what_a_query_sees_is_the_same(parts, number):
    whole = a_batch(parts)
    some = split(whole, number)
    sizes = [len(part.token_ids) for part in some]
    assert len(some) == min(number, len(whole.token_ids))
    assert max(sizes) - min(sizes) <= 1
    for name in ("token_ids", "positions", "slot_mapping"):
        assert torch.equal(torch.cat([getattr(part, name) for part in some]), getattr(whole, name))
    generator = torch.Generator().manual_seed(0)
    num_blocks = int(whole.block_table.max()) + 1
    k, v = (torch.randn(num_blocks, BLOCK, 1, 8, generator=generator) for _ in range(2))
    q = torch.randn(len(whole.token_ids), 2, 8, generator=generator)

    def seen(q, batch):
        return reference.paged_attention(q, k, v, batch.query_start, batch.context_lens, batch.block_table)

    found = torch.cat([seen(rows, part) for rows, part in zip(q.split(sizes), some, strict=True)])
    torch.testing.assert_close(found, seen(q, whole))
    for part in some:
        assert part.last_rows.tolist() == (part.query_start[1:] - 1).tolist()


@given(st.integers(0, 50), st.integers(1, 8))
def test_shares_are_all_rows_once(rows, ranks):
    shares = [share(rows, rank, ranks) for rank in range(ranks)]
    assert np.concatenate([np.arange(rows)[each] for each in shares]).tolist() == list(range(rows))
