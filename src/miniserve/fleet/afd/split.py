"""A step's tokens, split into batches that take turns.

They are cut anywhere, in the middle of a prompt too: a batch's keys and values are in the cache before the next one's
queries look, as batches take turns in their order in every layer.
"""

from itertools import pairwise

import torch

from miniserve.runtime.batch import Batch


def split(batch: Batch, number: int) -> list[Batch]:
    """Batches of nearly as many tokens each, at most so many and none empty; their rows in order are the whole's."""
    tokens = len(batch.token_ids)
    number = min(number, tokens)
    ends = [tokens * at // number for at in range(number + 1)]
    return [_rows(batch, first, last) for first, last in pairwise(ends)]


def _rows(batch: Batch, first: int, last: int) -> Batch:
    """Rows [first, last), with those requests that have any of them."""
    starts, ends = batch.query_start[:-1], batch.query_start[1:]
    here = (starts < last) & (ends > first)
    query_start = torch.cat((starts[here].clamp(min=first), ends[here][-1:].clamp(max=last))) - first
    behind = (ends - last).clamp(min=0)  # of a request, rows that come later
    return Batch(
        token_ids=batch.token_ids[first:last],
        positions=batch.positions[first:last],
        query_start=query_start,
        context_lens=(batch.context_lens - behind)[here],
        block_table=batch.block_table[here],
        slot_mapping=batch.slot_mapping[first:last],
        last_rows=query_start[1:].long() - 1,
    )
