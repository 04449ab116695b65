"""A step laid out as tensors, against the definition, one token at a time."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.core.executor import Scheduled, Step
from miniserve.core.request import Request
from miniserve.core.sampling_params import Limits
from miniserve.runtime.batch import Batch

CPU = torch.device("cpu")


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    parts=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), min_size=1, max_size=6),
    block_size=st.sampled_from([1, 4, 16]),
    extra=st.integers(0, 3),
)
def test_every_token_is_where_it_belongs(parts, block_size, extra):
    step, next_block = Step(), 0
    for number, (start, count) in enumerate(parts):
        length = start + count
        request = Request(f"r{number}", [number * 100 + position for position in range(length)], Limits(1))
        needed = -(-length // block_size) + extra
        request.block_table.extend(reversed(range(next_block, next_block + needed)))
        next_block += needed
        draft = [-1 - position for position in range(number % count)]  # the last of its tokens are guesses
        del request.token_ids[start + count - len(draft) :]
        step.scheduled.append(Scheduled(request, start, count, draft))
    batch = Batch.from_step(step, block_size, CPU)
    assert batch.query_start.tolist() == [0, *torch.tensor([count for _, count in parts]).cumsum(0).tolist()]
    assert batch.context_lens.tolist() == [start + count for start, count in parts]
    row = 0
    for index, (request, start, count, draft) in enumerate(step.scheduled):
        table = list(request.block_table)
        assert batch.block_table[index, : len(table)].tolist() == table
        assert not batch.block_table[index, len(table) :].any()
        for position in range(start, start + count):
            assert batch.token_ids[row] == [*request.token_ids, *draft][position]
            assert batch.positions[row] == position
            assert batch.slot_mapping[row] == table[position // block_size] * block_size + position % block_size
            row += 1
        assert batch.last_rows[index] == row - 1
    assert row == len(batch.token_ids)
    kinds = {name: getattr(batch, name).dtype for name in batch.__dataclass_fields__}
    wide = {"token_ids", "positions", "slot_mapping", "last_rows"}
    assert kinds == {name: torch.int64 if name in wide else torch.int32 for name in kinds}
