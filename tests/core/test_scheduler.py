"""The scheduler, driven against a device that computes nothing but remembers everything (see support/fake_device)."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from miniserve.core.block_pool import BlockPool
from miniserve.core.request import FinishReason, Request, Status
from miniserve.core.sampling_params import Limits, SamplingParams
from miniserve.core.scheduler import Scheduler
from miniserve.errors import InvalidRequestError
from support.fake_device import VOCABULARY, FakeDevice, alone
from support.fake_proposer import FakeProposer


class Engine:
    """The loop: schedule, execute, update, check."""

    def __init__(self, num_blocks=16, block_size=4, **options):
        self.pool = BlockPool(num_blocks, block_size)
        self.device = FakeDevice(num_blocks, block_size)
        limits = {"max_num_seqs": 8, "max_num_batched_tokens": 32, "max_model_len": num_blocks * block_size}
        self.scheduler = Scheduler(self.pool, **{**limits, **options})
        self.steps = []

    def add(self, name, prompt, max_tokens=4, stop=(), **options):
        request = Request(name, prompt, Limits(max_tokens, stop_token_ids=frozenset(stop)), **options)
        self.scheduler.add(request)
        return request

    def step(self):
        step = self.scheduler.schedule()
        assert step.scheduled, "work, but nothing scheduled"
        assert step.num_tokens <= self.scheduler.max_num_batched_tokens
        assert len(self.scheduler.running) <= self.scheduler.max_num_seqs
        self.steps.append([(part.request.request_id, part.start, part.num_tokens) for part in step.scheduled])
        finished = self.scheduler.update(step, self.device.launch(step).result().tokens)
        self.scheduler.check()
        return finished

    def run(self, limit=10_000):
        for _ in range(limit):
            if not self.scheduler.has_work:
                assert self.pool.num_free == self.pool.num_blocks
                return
            self.step()
        raise AssertionError(f"no end after {limit} steps")


def right(request):
    return request.output_token_ids == alone(
        request.prompt_token_ids, request.limits.max_tokens, request.limits.stop_token_ids
    )


def test_one_request_is_prefilled_then_decoded():
    engine = Engine()
    request = engine.add("a", list(range(10)), max_tokens=3)
    engine.run()
    assert engine.steps == [[("a", 0, 10)], [("a", 10, 1)], [("a", 11, 1)]]
    assert request.finish_reason is FinishReason.LENGTH
    assert right(request)


def test_a_long_prompt_goes_in_chunks_and_emits_nothing_before_its_end():
    engine = Engine(max_num_batched_tokens=8)
    request = engine.add("a", list(range(20)), max_tokens=2)
    for produced in (0, 0, 1, 2):
        engine.step()
        assert len(request.output_token_ids) == produced
    assert engine.steps == [[("a", 0, 8)], [("a", 8, 8)], [("a", 16, 4)], [("a", 20, 1)]]
    assert right(request)


def test_decodes_go_before_a_flood_of_prompts():
    """However many long prompts wait, a running request gets its token in every step."""
    engine = Engine(num_blocks=400, max_num_batched_tokens=16)
    first = engine.add("first", [1, 2, 3], max_tokens=40)
    engine.step()
    for number in range(20):
        engine.add(f"long{number}", [number] * 60, max_tokens=2)
    while first.status is not Status.FINISHED:
        before = len(first.output_token_ids)
        engine.step()
        assert len(first.output_token_ids) == before + 1
    engine.run()


def test_waiting_requests_go_by_priority_then_arrival():
    engine = Engine(max_num_seqs=1)
    engine.add("runs", [1], max_tokens=1)
    for name, priority in (("late", 5), ("b", 0), ("c", 0), ("urgent", -1)):
        engine.add(name, [2, 3], max_tokens=1, priority=priority)
    engine.run()
    assert [step[0][0] for step in engine.steps] == ["urgent", "runs", "b", "c", "late"]


def test_a_cached_prefix_is_not_computed_again():
    engine = Engine()
    shared = list(range(12))
    one = engine.add("one", [*shared, 1], max_tokens=2)
    engine.run()
    two = engine.add("two", [*shared, 2], max_tokens=2)
    engine.run()
    assert (one.num_cached, two.num_cached) == (0, 12)
    assert ("two", 12, 1) in engine.steps[2]
    assert right(one)
    assert right(two)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 12])
def test_a_wholly_cached_prompt_still_computes_a_token(length):
    engine = Engine()
    prompt = list(range(length))
    first = engine.add("first", prompt, max_tokens=3)
    engine.run()
    again = engine.add("again", prompt, max_tokens=3)
    free = engine.pool.num_free
    engine.step()
    assert again.num_cached == (length - 1) // 4 * 4
    assert free - engine.pool.num_free == -(-length // 4), "no block more than the prompt needs"
    engine.run()
    assert first.output_token_ids == again.output_token_ids == alone(prompt, 3)


def test_a_prefix_is_computed_once_however_many_arrive_together():
    """The others wait for the first to fill the blocks, then find them. Blocks are never shared before that."""
    engine = Engine(num_blocks=64)
    shared = list(range(8))
    first, *others = [engine.add(f"r{tail}", [*shared, tail], max_tokens=3) for tail in range(4)]
    engine.step()
    assert engine.steps[0] == [("r0", 0, 9)]
    assert engine.scheduler.num_waiting == 3
    engine.run()
    assert [request.num_cached for request in (first, *others)] == [0, 8, 8, 8]
    assert all(right(request) for request in (first, *others))


def test_twins_too_short_to_share_run_side_by_side():
    engine = Engine()
    twins = [engine.add(name, list(range(4)), max_tokens=3) for name in "ab"]
    engine.step()
    assert [part[0] for part in engine.steps[0]] == ["a", "b"]
    assert [twin.num_cached for twin in twins] == [0, 0]
    engine.run()
    assert all(right(twin) for twin in twins)


def test_who_waits_for_a_prefix_lets_others_pass():
    engine = Engine(num_blocks=64, max_num_batched_tokens=12)
    engine.add("long", list(range(30)), max_tokens=2)
    engine.add("twin", list(range(30)), max_tokens=2)
    other = engine.add("other", [40, 41], max_tokens=2)
    while other.status is not Status.FINISHED:
        engine.step()
    assert ("twin", 28, 2) in [part for step in engine.steps for part in step] or "twin" not in {
        part[0] for step in engine.steps for part in step
    }
    engine.run()


@pytest.mark.parametrize("how", ["abort", "preempt"])
def test_who_waits_for_a_prefix_goes_on_when_it_never_comes(how):
    engine = Engine(num_blocks=12, max_num_batched_tokens=4, max_model_len=40)
    first = engine.add("first", list(range(16)), max_tokens=2, priority=1)
    twin = engine.add("twin", list(range(16)), max_tokens=2, priority=1)
    engine.step()
    assert engine.scheduler.num_waiting == 1
    if how == "abort":
        engine.scheduler.finish(first, FinishReason.ABORT)
    else:
        engine.add("urgent", [30] * 30, max_tokens=10, priority=0)
    engine.run()
    assert right(twin)
    assert twin.num_cached == (4 if how == "abort" else 12)  # what was full when the first one left, or came back


def test_nobody_waits_for_a_prefix_that_a_larger_rank_computes():
    engine = Engine(num_blocks=64, max_num_batched_tokens=12)
    engine.add("slow", list(range(20)), max_tokens=2, priority=5)
    engine.step()
    urgent = engine.add("urgent", list(range(20)), max_tokens=2, priority=0)
    engine.step()
    assert engine.steps[1] == [("slow", 12, 8), ("urgent", 12, 4)]
    engine.run()
    assert right(urgent)


def test_parked_requests_can_be_aborted():
    engine = Engine()
    first, parked = (engine.add(name, list(range(12)), max_tokens=2) for name in "ab")
    engine.step()
    engine.scheduler.finish(parked, FinishReason.ABORT)
    assert engine.scheduler.num_waiting == 0
    engine.run()
    assert right(first)
    assert parked.output_token_ids == []


def test_a_request_that_wants_every_prompt_logit_computes_its_whole_prompt():
    engine = Engine()
    prompt = list(range(12))
    engine.add("one", prompt)
    engine.run()
    wants = engine.add("two", prompt, params=SamplingParams(prompt_logprobs=0))
    after = engine.add("three", prompt)
    engine.run()
    assert (wants.num_cached, after.num_cached) == (0, 8)
    assert right(wants)


def test_keys_separate_caches():
    engine = Engine()
    prompt = list(range(9))
    for name, keys in (("one", ("model", "salt1")), ("two", ("model", "salt2")), ("three", ("model", "salt1"))):
        engine.add(name, prompt, cache_keys=keys)
        engine.run()
    cached = {part[0]: part[1] for step in engine.steps for part in reversed(step) if part[2] > 1 or part[1] == 8}
    assert cached["one"] == cached["two"] == 0
    assert cached["three"] == 8


def test_without_prefix_caching_nothing_is_found():
    engine = Engine(prefix_caching=False)
    for name in "ab":
        request = engine.add(name, list(range(9)))
        engine.run()
        assert request.num_cached == 0
        assert right(request)


def test_preemption_takes_the_latest_and_changes_no_output():
    engine = Engine(num_blocks=6, max_model_len=24)
    requests = [engine.add(name, [index] * 7, max_tokens=10) for index, name in enumerate("abc")]
    engine.run()
    assert sum(request.num_preemptions for request in requests) > 0
    assert requests[0].num_preemptions == 0
    assert all(right(request) for request in requests)


def test_a_step_that_preempts_lets_nobody_in():
    """Whoever gave up its blocks did so for those that run, not for one that waits."""
    engine = Engine(num_blocks=4)
    first, last = engine.add("first", [1] * 7, max_tokens=6), engine.add("last", [2] * 7, max_tokens=6, priority=1)
    engine.step()
    between = engine.add("between", [3], max_tokens=3)
    engine.step()
    engine.step()
    assert last.num_preemptions == 1
    assert engine.pool.num_free == 1, "enough for one of them"
    engine.step()
    assert engine.steps[1:] == [
        [("first", 7, 1), ("last", 7, 1)],
        [("first", 8, 1)],
        [("first", 9, 1), ("between", 0, 1)],
    ]
    engine.run()
    assert all(map(right, (first, last, between)))


def test_recomputation_after_preemption_is_not_a_cache_hit():
    engine = Engine(num_blocks=6, max_model_len=24)
    requests = [engine.add(name, [index] * 8, max_tokens=12) for index, name in enumerate("ab")]
    engine.run()
    preempted = [request for request in requests if request.num_preemptions]
    assert preempted
    assert all(request.num_cached == 0 for request in requests)


def test_what_can_never_fit_is_refused_with_the_numbers():
    engine = Engine(num_blocks=4, max_model_len=100)
    with pytest.raises(InvalidRequestError, match="101; max_model_len is 100"):
        engine.add("long", [1] * 91, max_tokens=10)
    with pytest.raises(InvalidRequestError, match="17 tokens need 5 KV blocks of 4; the pool has 4"):
        engine.add("big", [1] * 10, max_tokens=7)
    with pytest.raises(InvalidRequestError, match="prompt is empty"):
        engine.add("none", [])
    fits = engine.add("fits", [1] * 10, max_tokens=6)
    engine.run()
    assert right(fits)


def test_stop_token_ends_after_min_tokens():
    free = alone([3, 1, 4], 12)
    stop = free[2]
    engine = Engine()
    one = engine.add("one", [3, 1, 4], max_tokens=12, stop=[stop])
    other = Request("other", [3, 1, 4], Limits(12, min_tokens=5, stop_token_ids=frozenset([stop])))
    engine.scheduler.add(other)
    engine.run()
    assert (one.output_token_ids, one.finish_reason) == (free[: free.index(stop) + 1], FinishReason.STOP)
    assert len(other.output_token_ids) >= 5
    assert other.output_token_ids == free[: len(other.output_token_ids)]


def test_abort_while_the_step_is_computed_keeps_the_blocks_until_it_is_done():
    engine = Engine()
    doomed, other = engine.add("doomed", list(range(6))), engine.add("other", [9, 9], max_tokens=3)
    step = engine.scheduler.schedule()
    table = list(doomed.block_table)
    engine.scheduler.finish(doomed, FinishReason.ABORT)
    engine.scheduler.finish(doomed, FinishReason.ABORT)
    assert doomed.status is Status.RUNNING
    assert not any(engine.pool.is_free(block) for block in table), "the device still writes there"
    finished = engine.scheduler.update(step, engine.device.launch(step).result().tokens)
    assert doomed not in [output.request for output in finished], "whoever aborted it knows"
    assert (doomed.finish_reason, doomed.output_token_ids) == (FinishReason.ABORT, [])
    assert all(engine.pool.is_free(block) for block in table)
    engine.run()
    assert right(other)


def test_abort_of_a_waiting_request():
    engine = Engine(max_num_seqs=1)
    runs, waits = engine.add("runs", [1, 2]), engine.add("waits", [3, 4])
    engine.step()
    engine.scheduler.finish(waits, FinishReason.ABORT)
    assert engine.scheduler.num_waiting == 0
    engine.run()
    assert right(runs)
    assert waits.output_token_ids == []


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    requests=st.lists(
        st.tuples(
            st.lists(st.integers(0, 2), min_size=1, max_size=14),  # few tokens: many shared prefixes
            st.integers(1, 8),
            st.integers(0, 2),
        ),
        min_size=1,
        max_size=8,
    ),
    num_blocks=st.integers(6, 20),
    block_size=st.sampled_from([1, 2, 4]),
    budget=st.integers(1, 40),
    seats=st.integers(1, 6),
    caching=st.booleans(),
    longest=st.integers(0, 5),
)
def test_every_request_gets_what_it_gets_alone(requests, num_blocks, block_size, budget, seats, caching, longest):
    """Batched, chunked, cached, preempted, drafted, in any mixture: the same tokens, and the pool back at its baseline."""
    engine = Engine(
        num_blocks, block_size, max_num_batched_tokens=budget, max_num_seqs=seats, prefix_caching=caching,
        proposer=FakeProposer(random.Random(budget), longest),
    )  # fmt: skip
    added = []
    for number, (prompt, max_tokens, priority) in enumerate(requests):
        if len(prompt) + max_tokens <= num_blocks * block_size:
            added.append(engine.add(f"r{number}", prompt, max_tokens, stop=[7, 8, 9], priority=priority))
    engine.run()
    assert all(right(request) for request in added)
    assert not engine.scheduler.proposer.known, "the proposer forgets whoever ends"


class SchedulerMachine(RuleBasedStateMachine):
    """Arrivals, steps and aborts in any order, aborts in the middle of a step among them."""

    def __init__(self):
        super().__init__()
        self.live, self.done, self.step, self.number = [], [], None, 0

    @initialize(longest=st.integers(0, 4), budget=st.integers(5, 12), rng=st.randoms(use_true_random=False))
    def build(self, longest, budget, rng):
        proposer = FakeProposer(rng, longest)
        self.engine = Engine(8, 2, max_num_seqs=4, max_num_batched_tokens=budget, proposer=proposer)

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=8), max_tokens=st.integers(1, 8),
        priority=st.integers(0, 1),
    )  # fmt: skip
    def arrive(self, prompt, max_tokens, priority):
        self.number += 1
        self.live.append(self.engine.add(f"r{self.number}", prompt, max_tokens, priority=priority))

    @precondition(lambda self: self.step is None and self.engine.scheduler.has_work)
    @rule()
    def schedule(self):
        self.step = self.engine.scheduler.schedule()
        assert self.step.scheduled

    @precondition(lambda self: self.step is not None)
    @rule()
    def complete(self):
        outputs = self.engine.scheduler.update(self.step, self.engine.device.launch(self.step).result().tokens)
        self.step = None
        for request in [output.request for output in outputs if output.finish_reason]:
            self.live.remove(request)
            assert right(request)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data):
        request = data.draw(st.sampled_from(self.live))
        self.engine.scheduler.finish(request, FinishReason.ABORT)
        self.live.remove(request)

    @invariant()
    def sound(self):
        self.engine.scheduler.check()
        for request in self.live:
            expected = alone(request.prompt_token_ids, request.limits.max_tokens)
            assert request.output_token_ids == expected[: len(request.output_token_ids)]

    def teardown(self):
        if self.step is not None:
            self.complete()
        self.engine.run()
        assert not self.engine.scheduler.proposer.known


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(derandomize=True, deadline=None, max_examples=120, stateful_step_count=50)


def test_a_long_queue_does_not_slow_a_step():
    """CPU time of a step with 10,000 waiting requests, against one with 10: the queue is a heap, and only its top is read."""

    def step_time(queued):
        engine = Engine(num_blocks=2000, block_size=16, max_num_seqs=32, max_num_batched_tokens=512, max_model_len=4096)
        rng = random.Random(0)
        for number in range(32 + queued):
            engine.add(f"r{number}", [rng.randrange(VOCABULARY) for _ in range(12)], max_tokens=500)
        times = []
        for _ in range(30):
            started = time.process_time()
            step = engine.scheduler.schedule()
            times.append(time.process_time() - started)
            engine.scheduler.update(step, [[0]] * len(step.scheduled))
        return sorted(times)[len(times) // 2]

    assert step_time(10_000) < 3 * step_time(10) + 100e-6
