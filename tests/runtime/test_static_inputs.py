"""A decode step at fixed addresses: the same step as `Batch.from_step` lays it out, and padding that touches nothing."""

from collections import deque

import pytest
import torch

from miniserve.core.executor import Scheduled, Step
from miniserve.core.request import Request
from miniserve.core.sampling_params import Limits, SamplingParams
from miniserve.kernels import reference
from miniserve.model.load import load_model
from miniserve.runtime.batch import Batch
from miniserve.runtime.graphs import batch_sizes
from miniserve.runtime.kv_cache import KVCache
from miniserve.runtime.paged_attention import PagedAttention
from miniserve.runtime.static_inputs import StaticInputs

CPU = torch.device("cpu")
BLOCK = 4


def decoding(lengths, first_block=1, **params):
    """A step of one token of each request; request i has lengths[i] tokens, the last of which is to be computed."""
    scheduled = []
    for index, length in enumerate(lengths):
        tokens = [(7 * index + at) % 128 for at in range(length)]
        request = Request(f"r{index}", tokens, Limits(4), SamplingParams(**params))
        blocks = -(-length // BLOCK)
        request.block_table.extend(range(first_block, first_block + blocks))
        first_block += blocks
        scheduled.append(Scheduled(request, length - 1, 1))
    return Step(scheduled)


@pytest.mark.parametrize(("lengths", "size"), [([1], 1), ([4, 5, 13], 4), ([9, 8], 8)])
def test_equals_a_batch_laid_out_afresh(lengths, size):
    inputs = StaticInputs(8, 4, BLOCK, CPU)
    inputs.fill(decoding([16] * 8), 8)  # what an earlier, larger step left behind
    step = decoding(lengths)
    inputs.fill(step, size)
    static, fresh = inputs.batch(size), Batch.from_step(step, BLOCK, CPU)
    count = len(lengths)
    for name in ("token_ids", "positions", "context_lens", "slot_mapping", "last_rows"):
        assert torch.equal(getattr(static, name)[:count], getattr(fresh, name)), name
        assert getattr(static, name).dtype == getattr(fresh, name).dtype
    assert torch.equal(static.query_start[: count + 1], fresh.query_start)
    for row, part in enumerate(step.scheduled):
        blocks = list(part.request.block_table)
        assert static.block_table[row, : len(blocks)].tolist() == blocks
    assert static.slot_mapping[count:].tolist() == [-1] * (size - count)
    assert static.context_lens[count:].tolist() == [0] * (size - count)


class LateEvent:
    """The device copies a twin when somebody waits for it, and not before."""

    def __init__(self, copy, host):
        self.copy, self.host, self.due = copy, host, False

    def record(self):
        self.due = True

    def synchronize(self):
        if self.due:
            self.copy(self.host)
        self.due = False


def test_a_twin_is_not_written_while_the_device_still_reads_it():
    """With a device that is as late as it may be, each step is read as it was written."""
    inputs, seen = StaticInputs(8, 4, BLOCK, CPU), []
    inputs._twins = deque(
        twin._replace(was_read=LateEvent(lambda host: seen.append(host.clone()), twin.host)) for twin in inputs._twins
    )
    for length in (3, 7, 11, 15):
        inputs.fill(decoding([length]), 1)
        assert sum(twin.was_read.due for twin in inputs._twins) == min(2, 1 + (length > 3)), "no waiting for the last"
    for twin in reversed(inputs._twins):
        twin.was_read.synchronize()
    start, end, kind = inputs._spans[1]
    assert [host[start:end].view(kind)[0].item() for host in seen] == [2, 6, 10, 14]


def test_views_stay_where_they_are():
    inputs = StaticInputs(8, 4, BLOCK, CPU)
    before = inputs.batch(3)
    inputs.fill(decoding([3, 6]), 3)
    assert before.context_lens.tolist() == [3, 6, 0]
    assert inputs.batch(3).block_table.data_ptr() == before.block_table.data_ptr()


def test_takes_pure_decode_steps_that_fit():
    inputs = StaticInputs(2, 3, BLOCK, CPU)
    assert inputs.takes(decoding([12, 1]))
    assert not inputs.takes(decoding([12, 1, 1])), "more requests than rows"
    assert not inputs.takes(decoding([13])), "one block more than the table is wide"
    step = decoding([8, 8])
    assert not inputs.takes(Step([step.scheduled[0], step.scheduled[1]._replace(start=6, num_tokens=2)]))
    assert not inputs.takes(Step([step.scheduled[0]._replace(start=3)])), "a chunk of one token in a prompt's middle"
    assert not inputs.takes(decoding([8], prompt_logprobs=1))


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_padded_rows_change_neither_the_cache_nor_the_others(tiny_directory, family):
    """The decoder over padded rows: the same logits for the rows that count, and nothing else written to the cache."""
    model = load_model(str(tiny_directory(family)[0]), device="cpu", backend="torch")
    step = decoding([5, 9])
    inputs = StaticInputs(8, 4, BLOCK, CPU)
    inputs.fill(step, 8)
    logits, caches = [], []
    for batch in (Batch.from_step(step, BLOCK, CPU), inputs.batch(8)):
        torch.manual_seed(0)
        cache = KVCache(model.config, 8, BLOCK, dtype=torch.float32, device=CPU)
        for each in cache.keys + cache.values:
            each.normal_()
        with torch.inference_mode():
            hidden = model.decoder(batch.token_ids, batch.positions, PagedAttention(reference, cache, batch))
            logits.append(model.decoder.logits(hidden))
        caches.append(cache.keys + cache.values)
    assert logits[1].isfinite().all()
    assert torch.allclose(logits[1][:2], logits[0], atol=1e-5)
    for ours, theirs in zip(*caches, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_padded_rows_go_to_no_expert(tiny_directory, monkeypatch):
    model = load_model(str(tiny_directory("qwen3_moe")[0]), device="cpu", backend="torch")
    inputs, routed = StaticInputs(8, 4, BLOCK, CPU), []
    inputs.fill(decoding([5, 9]), 4)
    batch = inputs.batch(4)
    cache = KVCache(model.config, 8, BLOCK, dtype=torch.float32, device=CPU)
    moe = reference.moe
    monkeypatch.setattr(reference, "moe", lambda x, w, ids, *experts: routed.append(ids) or moe(x, w, ids, *experts))
    with torch.inference_mode():
        model.decoder(batch.token_ids, batch.positions, PagedAttention(reference, cache, batch))
    assert len(routed) == model.config.num_layers
    for ids in routed:
        assert (ids[:2] >= 0).all()
        assert (ids[2:] == -1).all()


@pytest.mark.parametrize("largest", [1, 2, 5, 8, 64, 100, 256, 300])
def test_a_size_for_each_batch_and_little_padding(largest):
    sizes = batch_sizes(largest)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == largest
    assert sizes[0] == 1
    for batch in range(1, largest + 1):
        padded = next(size for size in sizes if size >= batch)
        assert padded <= 2 * batch
        assert padded < batch + 32
