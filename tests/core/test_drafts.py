"""Drafts in the scheduler: what they may take, and that nothing of a wrong one lasts."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.core.block_pool import BlockPool
from miniserve.core.hashing import block_hash, root_hash
from miniserve.core.request import FinishReason, Request
from miniserve.core.sampling_params import Limits
from miniserve.core.scheduler import Scheduler
from support.fake_device import FakeDevice, alone
from support.fake_proposer import FakeProposer


class Says:
    """A proposer that says the truth, or beside it, and notes how much room it was given."""

    def __init__(self, longest=3, wrong=0):
        self.longest, self.wrong, self.rooms = longest, wrong, []

    def propose(self, requests, rooms):
        self.rooms.append(list(rooms))
        drafts = [alone(request.token_ids, room) for request, room in zip(requests, rooms, strict=True)]
        return [[(token + self.wrong) % 50 for token in draft] for draft in drafts]

    def forget(self, request):
        pass


class Engine:
    """Schedule, execute, update, check."""

    def __init__(self, proposer, num_blocks=16, block_size=4, **options):
        self.steps, self.events = [], []
        self.pool, self.device = (
            BlockPool(num_blocks, block_size, self.events.append),
            FakeDevice(num_blocks, block_size),
        )
        limits = {"max_num_seqs": 8, "max_num_batched_tokens": 32, "max_model_len": num_blocks * block_size}
        self.scheduler = Scheduler(self.pool, **{**limits, **options}, proposer=proposer)

    def add(self, name, prompt, max_tokens=4, stop=(), **options):
        request = Request(name, prompt, Limits(max_tokens, stop_token_ids=frozenset(stop)), **options)
        self.scheduler.add(request)
        return request

    def step(self):
        step = self.scheduler.schedule()
        self.steps.append([(part.request.request_id, part.start, part.num_tokens) for part in step.scheduled])
        outputs = self.scheduler.update(step, self.device.launch(step).result().tokens)
        self.scheduler.check()
        return outputs

    def run(self):
        while self.scheduler.has_work:
            self.step()
        assert self.pool.num_free == self.pool.num_blocks


def right(request):
    return request.output_token_ids == alone(
        request.prompt_token_ids, request.limits.max_tokens, request.limits.stop_token_ids
    )


def test_a_right_draft_gives_one_token_more_than_it_has():
    engine = Engine(Says())
    request = engine.add("a", [1, 2, 3], max_tokens=8)
    engine.run()
    # The second draft has two tokens: the last one of an output is never computed.
    assert engine.steps == [[("a", 0, 3)], [("a", 3, 4)], [("a", 7, 3)]]
    assert engine.scheduler.proposer.rooms == [[3], [2]]
    assert right(request)


def test_a_wrong_draft_gives_the_token_that_comes_without_it():
    engine = Engine(Says(wrong=1))
    request = engine.add("a", [1, 2, 3], max_tokens=5)
    engine.run()
    assert [step[0][1:] for step in engine.steps] == [(0, 3), (3, 4), (4, 3), (5, 2), (6, 1)]
    assert right(request)


def test_a_proposer_that_fails_costs_its_requests_the_drafts_and_nothing_else(caplog):
    class Fails(Says):
        error, forgotten = RuntimeError("out of memory"), ()

        def propose(self, requests, rooms):
            drafts = super().propose(requests, rooms)
            if self.error:
                raise self.error
            return drafts

        def forget(self, request):
            self.forgotten = (*self.forgotten, request)

    engine = Engine(Fails())
    first, second = (engine.add(name, [number] * 3, max_tokens=8) for number, name in enumerate("ab"))
    for _ in range(3):
        engine.step()
    (record,) = caplog.records
    assert record.getMessage() == ("no tokens ahead can be guessed any more for a, b: RuntimeError('out of memory')")
    assert record.exc_info
    proposer = engine.scheduler.proposer
    assert proposer.forgotten == (first, second)
    proposer.error = None
    later = engine.add("later", [5] * 3, max_tokens=8)
    engine.run()
    assert proposer.rooms == [[3, 3], [3], [2]], "of the two nobody asks again; of the third as ever"
    assert all(map(right, (first, second, later)))


def test_drafts_have_what_others_leave_of_the_budget():
    """First the decodes, then prompts that run, then prompts that wait; what is left goes by rank."""
    engine = Engine(Says(), num_blocks=64, max_num_batched_tokens=10)
    for name in "ab":
        engine.add(name, [ord(name) % 7] * 2, max_tokens=30)
    engine.step()
    long = engine.add("long", list(range(14)), max_tokens=2)
    for expected in (
        [("a", 2, 1), ("b", 2, 1), ("long", 0, 8)],
        [("a", 3, 3), ("b", 3, 1), ("long", 8, 6)],
        [("a", 6, 4), ("b", 4, 4), ("long", 14, 1)],
    ):
        engine.step()
        assert engine.steps[-1] == expected
    engine.run()
    assert right(long)


def test_a_prompt_in_chunks_has_no_draft_before_its_end():
    engine = Engine(Says(), max_num_batched_tokens=8)
    request = engine.add("a", list(range(20)), max_tokens=6)
    engine.run()
    assert engine.steps == [[("a", 0, 8)], [("a", 8, 8)], [("a", 16, 4)], [("a", 20, 4)], [("a", 24, 1)]]
    assert right(request)


def test_a_draft_takes_free_blocks_only():
    """With all blocks taken a draft is as long as the request's own last block allows."""
    engine = Engine(Says(), num_blocks=4)
    one, two = engine.add("one", [1] * 5, max_tokens=4), engine.add("two", [2] * 5, max_tokens=4)
    engine.step()
    assert engine.pool.num_free == 0
    engine.step()
    assert engine.steps[1] == [("one", 5, 3), ("two", 5, 3)]
    engine.run()
    assert one.num_preemptions == two.num_preemptions == 0
    assert right(one)
    assert right(two)


def test_blocks_of_wrong_drafts_are_given_back_before_anyone_is_preempted():
    engine = Engine(Says(longest=8, wrong=1), num_blocks=8, block_size=2, max_model_len=16)
    first = engine.add("first", [1] * 3, max_tokens=9)
    engine.step()
    engine.step()
    spare = len(first.block_table) * 2 - len(first.token_ids)
    assert spare > 2, "kept, as it needs them next"
    second = engine.add("second", [2] * 9, max_tokens=3)  # has room only in what the draft left
    engine.step()
    assert ("second", 0, 9) in engine.steps[-1]
    engine.run()
    assert right(first)
    assert right(second)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    requests=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 8), st.integers(0, 1)), min_size=1, max_size=8),
    num_blocks=st.integers(5, 12),
    block_size=st.sampled_from([2, 4]),
    budget=st.integers(1, 24),
    longest=st.integers(1, 9),
)
def test_drafts_cost_nobody_anything(requests, num_blocks, block_size, budget, longest):
    """With a proposer that is always wrong, all goes as without one: the same steps, preemptions and admissions."""

    def ran(proposer):
        engine, steps = Engine(
            proposer, num_blocks, block_size, max_num_batched_tokens=budget, prefix_caching=False, max_num_seqs=4
        ), []  # fmt: skip
        for number, (length, max_tokens, priority) in enumerate(requests):
            if length + max_tokens <= num_blocks * block_size:
                engine.add(f"r{number}", [number] * length, max_tokens, priority=priority)
        while engine.scheduler.has_work:
            step = engine.scheduler.schedule()
            assert step.num_tokens <= budget
            parts = [(part.request.request_id, part.start, part.num_known) for part in step.scheduled]
            steps.append((parts, [request.request_id for request in step.preempted]))
            engine.scheduler.update(step, engine.device.launch(step).result().tokens)
            engine.scheduler.check()
        return steps

    assert ran(Says(longest, wrong=1)) == ran(None)


def test_a_block_is_registered_with_accepted_tokens_only():
    engine = Engine(Says(longest=3, wrong=1))
    request = engine.add("a", [1, 2, 3], max_tokens=9)
    while engine.scheduler.has_work:
        before = len(engine.events)
        engine.step()
        stored, parent = [event.block_hash for event in engine.events[before:]], root_hash()
        hashes = [parent := block_hash(parent, request.token_ids[at : at + 4]) for at in range(0, 12, 4)]
        assert set(stored) <= set(hashes[: (len(request.token_ids) - 1) // 4])
    assert len(engine.events) == 2


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4])
def test_an_end_within_a_draft_is_the_end(stop_at):
    truth = alone([3, 1, 5], 9)
    engine = Engine(Says())
    request = engine.add("a", [3, 1, 5], max_tokens=9, stop=[truth[stop_at]])
    while not request.finish_reason:
        (output,) = engine.step()
    assert output.finish_reason is FinishReason.STOP
    assert request.output_token_ids == truth[: stop_at + 1]
    assert request.num_computed == len(request.token_ids) - 1


def test_an_abort_drops_the_draft_that_is_being_computed():
    engine = Engine(Says())
    request = engine.add("a", [1, 2, 3], max_tokens=9)
    engine.step()
    step = engine.scheduler.schedule()
    assert len(step.scheduled[0].draft) == 3
    engine.scheduler.finish(request, FinishReason.ABORT)
    assert engine.scheduler.update(step, engine.device.launch(step).result().tokens) == []
    assert request.output_token_ids == alone([1, 2, 3], 1)
    engine.scheduler.check()
    assert engine.pool.num_free == engine.pool.num_blocks


def test_others_decode_as_fast_beside_drafts():
    """Whatever one request drafts, every other one that runs gets its token in every step."""
    engine = Engine(FakeProposer(random.Random(0)), num_blocks=200, max_num_batched_tokens=6)
    requests = [engine.add(str(number), [number], max_tokens=20) for number in range(6)]
    while any(request.finish_reason is None for request in requests):
        going = [request for request in engine.scheduler.running if request.num_remaining == 1]
        before = [request.num_output_tokens for request in going]
        engine.step()
        assert all(request.num_output_tokens > had for request, had in zip(going, before, strict=True))
    assert all(right(request) for request in requests)
