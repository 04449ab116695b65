"""Scheduling ahead, against a device that reads its inputs late (see support/late_device)."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from miniserve.core.block_pool import BlockPool
from miniserve.core.engine import Engine
from miniserve.core.request import FinishReason, Request
from miniserve.core.sampling_params import GREEDY, Limits, SamplingParams
from miniserve.core.scheduler import Scheduler
from support.fake_device import alone
from support.fake_proposer import FakeProposer
from support.late_device import LateDevice

PENALISED = SamplingParams(repetition_penalty=1.5)


def build(num_blocks=16, block_size=4, breaks=None, **options):
    pool = BlockPool(num_blocks, block_size)
    limits = {"max_num_seqs": 8, "max_num_batched_tokens": 32, "max_model_len": num_blocks * block_size}
    return Engine(Scheduler(pool, **{**limits, **options}), LateDevice(pool, breaks=breaks))


def add(engine, name, prompt, max_tokens=4, stop=(), params=GREEDY, **options):
    request = Request(name, prompt, Limits(max_tokens, stop_token_ids=frozenset(stop)), params, **options)
    engine.add_request(request)
    return request


def drain(engine, limit=10_000):
    """Step to the end, and hold the outputs against the requests."""
    said = {}
    for _ in range(limit):
        if not engine.has_work:
            break
        for request, tokens, _ in engine.step():
            said.setdefault(request, []).extend(tokens)
        engine.scheduler.check()
    assert not engine.has_work
    assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_blocks
    assert not engine.executor.flying
    return said


def right(request):
    return request.output_token_ids == expected(request)


def expected(request):
    return alone(request.prompt_token_ids, request.limits.max_tokens, request.limits.stop_token_ids)


def test_the_next_step_is_launched_before_the_result_is_asked_for():
    engine = build()
    request = add(engine, "a", [1, 2, 3], max_tokens=4)
    (output,) = engine.step()
    assert output.tokens == expected(request)[:1]
    assert len(engine.executor.flying) == 1
    assert (request.num_pending, request.num_in_flight, request.num_computed) == (1, 1, 4)
    said = drain(engine)
    assert said[request] == expected(request)[1:]
    assert engine.metrics.num_steps == engine.executor.num_launched == 4, "its length is known ahead: nothing is wasted"


def test_an_end_that_nobody_knew_of_wastes_one_part_of_one_step():
    engine = build()
    prompt, other = [3, 1, 4], add(engine, "other", [9, 9], max_tokens=9)
    stop = alone(prompt, 12)[2]
    request = add(engine, "a", prompt, max_tokens=12, stop=[stop])
    while request.finish_reason is None:
        (output,) = [output for output in engine.step() if output.request is request]
        engine.scheduler.check()
    assert (output.tokens, output.finish_reason) == ([stop], FinishReason.STOP)
    assert request.num_in_flight == 1
    table = list(request.block_table)
    assert not any(map(engine.scheduler.pool.is_free, table)), "the step in flight writes there"
    assert request not in [output.request for output in engine.step()], "no token twice"
    assert all(map(engine.scheduler.pool.is_free, table))
    drain(engine)
    assert right(request)
    assert right(other)


def test_what_nobody_waits_for_is_waited_for_at_once():
    engine = build()
    prompt = [3, 1, 4]
    add(engine, "a", prompt, max_tokens=12, stop=[alone(prompt, 12)[2]])
    for _ in range(3):
        engine.step()
    assert not engine.has_work
    add(engine, "b", prompt, max_tokens=12)
    engine.step()
    assert engine.finish("b")
    assert not engine.has_work
    drain(engine)


@pytest.mark.parametrize("at_once", [False, True])
def test_who_looks_back_is_never_run_ahead_of(at_once):
    """Its newest token has to be on the host: steps that choose for it are waited for, and the others overlap again."""
    engine = build(max_num_batched_tokens=4)
    first = add(engine, "first", [1, 2], max_tokens=20)
    if not at_once:
        engine.step()
    late = add(engine, "late", [5] * 6, max_tokens=4, params=PENALISED)
    while late.finish_reason is None:
        engine.step()
        engine.scheduler.check()
        assert not any(request.num_pending for request in (late,))
    ahead = engine.executor.num_ahead
    drain(engine)
    assert engine.executor.num_ahead > ahead
    assert right(first)
    assert right(late)


def test_nobody_is_preempted_ahead():
    engine = build(num_blocks=6, max_model_len=24)
    requests = [add(engine, name, [index] * 7, max_tokens=10) for index, name in enumerate("abc")]
    drain(engine)
    assert sum(request.num_preemptions for request in requests) > 0
    assert engine.executor.num_ahead > 0
    assert all(map(right, requests))


@pytest.mark.parametrize("error", [RuntimeError("the device is gone"), KeyboardInterrupt()])
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("where", ["launch", "result"])
def test_a_failure_ends_the_requests_of_its_step_alone(where, number, error):
    engine = build(max_num_seqs=2, breaks={(where, number): error})
    short, long = add(engine, "short", [1], max_tokens=2), add(engine, "long", [2], max_tokens=6)
    waiting = add(engine, "waiting", [3], max_tokens=5)
    with pytest.raises(type(error)):
        drain(engine)
    engine.scheduler.check()
    reason = FinishReason.ERROR if isinstance(error, Exception) else FinishReason.ABORT
    assert long.finish_reason is reason
    # `short` has no part in the third step. When that fails to be launched, the second is still to be looked at.
    assert short.finish_reason is (None if (where, number) == ("launch", 2) else reason if number < 2 else
                                   FinishReason.LENGTH)  # fmt: skip
    assert long.output_token_ids == expected(long)[: len(long.output_token_ids)]
    drain(engine)
    assert right(waiting)
    assert engine.metrics.finished[reason] == 2 - (number == 2)


def test_a_name_may_be_used_again_while_the_old_one_is_in_flight():
    engine = build()
    old, other = add(engine, "a", [1, 2], max_tokens=9), add(engine, "other", [3], max_tokens=9)
    engine.step()
    engine.finish("a")
    assert old.num_in_flight == 1
    new = add(engine, "a", [1, 2], max_tokens=3)
    said = drain(engine)
    assert old not in said
    assert said[new] == expected(new)
    assert right(other)
    assert engine.metrics.finished == {
        FinishReason.ABORT: 1, FinishReason.LENGTH: 2, FinishReason.STOP: 0, FinishReason.ERROR: 0, FinishReason.MOVED: 0,
    }  # fmt: skip


def test_drafts_and_running_ahead_exclude_each_other():
    """A draft follows the newest token, which has to be known."""
    engine = build(proposer=FakeProposer(random.Random(0)))
    requests = [add(engine, str(number), [number], max_tokens=9) for number in range(3)]
    while engine.has_work:
        engine.step()
        assert not engine.executor.flying
    assert engine.metrics.drafted
    assert all(map(right, requests))


def test_output_cut_while_its_request_is_in_flight():
    """As a stop string does: the tokens behind it go, though a step computes on top of them."""
    engine = build(block_size=2)
    request, other = add(engine, "a", [1, 2], max_tokens=20), add(engine, "other", [3], max_tokens=20)
    for _ in range(5):
        engine.step()
    engine.finish("a", FinishReason.STOP)
    request.cut(2)
    engine.scheduler.check()
    drain(engine)
    assert request.output_token_ids == expected(request)[:2]
    again = add(engine, "again", [*request.token_ids, 7], max_tokens=3)
    drain(engine)
    assert right(again)
    assert right(other)


def test_a_block_of_tokens_that_were_cut_is_not_found():
    """The step in flight fills the fourth block, and the third one's tokens are the last that stay."""
    engine = build(block_size=2)
    request, other = add(engine, "a", [1, 2], max_tokens=20), add(engine, "other", [3], max_tokens=10)
    for _ in range(6):
        engine.step()
    assert (len(request.token_ids), request.num_computed, request.num_in_flight) == (8, 8, 1)
    table = list(request.block_table)
    engine.finish("a", FinishReason.STOP)
    request.cut(4)
    drain(engine)
    assert list(map(engine.scheduler.pool.is_cached, table)) == [True, True, True, False]
    assert right(other)


def test_a_block_is_found_only_once_the_step_that_fills_it_has_ended():
    """The third step fills the first block, and fails: between the second and the fourth, which do not."""
    engine = build(breaks={("result", 2): RuntimeError("the device is gone")})
    request = add(engine, "a", [1, 2], max_tokens=9)
    with pytest.raises(RuntimeError, match="gone"):
        drain(engine)
    assert request.output_token_ids == expected(request)[:2]
    again = add(engine, "again", [*request.token_ids, 7], max_tokens=3)
    drain(engine)
    assert again.num_cached == 0
    assert right(again)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    requests=st.lists(
        st.tuples(
            st.lists(st.integers(0, 2), min_size=1, max_size=14), st.integers(1, 8), st.integers(0, 2), st.booleans()
        ),
        min_size=1,
        max_size=8,
    ),
    num_blocks=st.integers(6, 20),
    block_size=st.sampled_from([1, 2, 4]),
    budget=st.integers(1, 40),
    seats=st.integers(1, 6),
    caching=st.booleans(),
)
def test_every_request_gets_what_it_gets_alone(requests, num_blocks, block_size, budget, seats, caching):
    engine = build(num_blocks, block_size, max_num_batched_tokens=budget, max_num_seqs=seats, prefix_caching=caching)
    added = []
    for number, (prompt, max_tokens, priority, penalised) in enumerate(requests):
        if len(prompt) + max_tokens <= num_blocks * block_size:
            params = PENALISED if penalised and number % 3 == 0 else GREEDY
            added.append(add(engine, f"r{number}", prompt, max_tokens, [7, 8, 9], params, priority=priority))
    said = drain(engine)
    for request in added:
        assert said[request] == request.output_token_ids == expected(request)


class OverlapMachine(RuleBasedStateMachine):
    """Arrivals, steps and aborts in any order, over a tiny pool."""

    def __init__(self):
        super().__init__()
        self.engine = build(num_blocks=8, block_size=2, max_num_seqs=4, max_num_batched_tokens=6)
        self.requests, self.said, self.number = [], {}, 0

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=8), max_tokens=st.integers(1, 8),
        priority=st.integers(0, 1), stops=st.booleans(), penalised=st.integers(0, 5),
    )  # fmt: skip
    def arrive(self, prompt, max_tokens, priority, stops, penalised):
        self.number += 1
        params = GREEDY if penalised else PENALISED
        stop = range(0, 50, 5) if stops else ()
        self.requests.append(add(self.engine, f"r{self.number}", prompt, max_tokens, stop, params, priority=priority))

    @precondition(lambda self: self.engine.has_work)
    @rule()
    def step(self):
        for request, tokens, _ in self.engine.step():
            self.said.setdefault(request, []).extend(tokens)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data):
        self.engine.finish(data.draw(st.sampled_from(self.requests)).request_id)

    @invariant()
    def sound(self):
        self.engine.scheduler.check()
        for request in self.requests:
            assert request.output_token_ids == expected(request)[: request.num_output_tokens]
            assert self.said.get(request, []) == request.output_token_ids

    def teardown(self):
        while self.engine.has_work:
            self.step()
            self.sound()
        assert self.engine.scheduler.pool.num_free == 8
        assert not self.engine.executor.flying
        assert all(right(r) for r in self.requests if r.finish_reason is not FinishReason.ABORT)


TestOverlapMachine = OverlapMachine.TestCase
TestOverlapMachine.settings = settings(derandomize=True, deadline=None, max_examples=50, stateful_step_count=40)
