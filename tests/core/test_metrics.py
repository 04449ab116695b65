"""Totals and distributions, on a clock that the test moves."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.core.block_pool import BlockPool
from miniserve.core.engine import Engine
from miniserve.core.histogram import Histogram
from miniserve.core.request import FinishReason, Request
from miniserve.core.sampling_params import Limits
from miniserve.core.scheduler import Scheduler
from support.fake_device import FakeDevice, alone


class Timed(FakeDevice):
    def __init__(self, *size):
        super().__init__(*size)
        self.now = 0.0

    def launch(self, step):
        self.now += 1.0
        computed = super().launch(step)
        computed.outcome.seconds = {"forward": 0.75, "sample": 0.25}
        return computed


@pytest.fixture
def engine():
    device = Timed(16, 4)
    records = []
    scheduler = Scheduler(BlockPool(16, 4), max_num_seqs=4, max_num_batched_tokens=8, max_model_len=64)
    made = Engine(scheduler, device, lambda: device.now, on_step=records.append)
    made.records = records
    return made


def run(engine):
    while engine.has_work:
        engine.step()


def test_histogram_counts_by_upper_bound():
    histogram = Histogram([1, 2, 4])
    for value in (0.5, 1, 1.5, 4, 5):
        histogram.observe(value)
    assert histogram.counts == [2, 1, 1, 1]
    assert (histogram.count, histogram.sum, histogram.mean) == (5, 12.0, 2.4)
    assert Histogram([1]).mean is None


def test_totals_of_a_run(engine):
    engine.add_request(Request("a", list(range(10)), Limits(3)))
    run(engine)
    engine.add_request(Request("b", [*range(8), 99 % 50, 1], Limits(3)))
    run(engine)
    metrics = engine.metrics
    assert (metrics.num_prompt_tokens, metrics.num_cached_tokens, metrics.hit_rate) == (20, 8, 0.4)
    assert metrics.num_output_tokens == 6
    assert metrics.num_computed_tokens == 10 + 2 + 2 + 2
    assert metrics.num_steps == len(engine.records) == 7
    assert metrics.finished[FinishReason.LENGTH] == 2
    assert metrics.seconds == {"forward": 7 * 0.75, "sample": 7 * 0.25}
    assert metrics.execute_s == 7.0
    assert (metrics.ttft_s.count, metrics.ttft_s.sum) == (2, 2.0 + 1.0)  # ten tokens take two steps of eight
    assert (metrics.itl_s.count, metrics.itl_s.sum) == (4, 4.0)
    assert (metrics.e2e_s.count, metrics.e2e_s.sum) == (2, 4.0 + 3.0)
    assert (metrics.queue_s.count, metrics.queue_s.sum) == (2, 0.0)


def test_records_say_who_computed_what(engine):
    engine.add_request(Request("a", list(range(10)), Limits(2)))
    engine.add_request(Request("b", [7], Limits(2)))
    run(engine)
    parts = [[tuple(part) for part in record.parts] for record in engine.records]
    assert parts[0] == [("a", 0, 8, False, 0, 0)]
    assert parts[1] == [("a", 8, 2, True, 0, 0), ("b", 0, 1, True, 0, 0)]
    assert [record.num_tokens for record in engine.records] == [8, 3, 2]
    assert [record.num_waiting for record in engine.records] == [1, 0, 0]
    assert engine.records[-1].num_free_blocks == 16


class Says:
    """A proposer that has its drafts from a list."""

    def __init__(self, *drafts):
        self.longest, self.drafts = 3, list(drafts)

    def propose(self, requests, rooms):
        return [self.drafts.pop(0) for _ in requests]

    def forget(self, request):
        pass


def test_drafts_are_counted_by_position(engine):
    truth = alone([1, 2], 8)
    assert engine.metrics.acceptance is engine.metrics.tokens_per_step is None
    wrong = [token + 1 for token in truth]
    engine.scheduler.proposer = Says([*truth[1:3], wrong[3]], [], [wrong[5], truth[6]], [])
    engine.add_request(Request("a", [1, 2], Limits(8)))
    run(engine)
    parts = [record.parts[0] for record in engine.records]
    assert [(part.num_tokens, part.num_drafted, part.num_accepted) for part in parts] == [
        (2, 0, 0), (4, 3, 2), (1, 0, 0), (3, 2, 0), (1, 0, 0), (1, 0, 0),
    ]  # fmt: skip
    metrics = engine.metrics
    assert (metrics.drafted, metrics.accepted) == ([2, 2, 1], [1, 1, 0])
    assert metrics.acceptance == 2 / 5
    assert (metrics.num_output_tokens, metrics.num_samplings, metrics.tokens_per_step) == (8, 6, 8 / 6)


def test_recomputation_after_preemption_is_in_no_hit_rate():
    """The total of prompt tokens counts each request once, however often it starts again."""
    device = Timed(6, 4)
    scheduler = Scheduler(BlockPool(6, 4), max_num_seqs=4, max_num_batched_tokens=32, max_model_len=24)
    engine = Engine(scheduler, device, lambda: device.now)
    for index, name in enumerate("ab"):
        engine.add_request(Request(name, [index] * 8, Limits(12)))
    run(engine)
    assert engine.metrics.num_preemptions > 0
    assert (engine.metrics.num_prompt_tokens, engine.metrics.num_cached_tokens) == (16, 0)


def test_hit_rate_before_the_first_prompt_is_unknown(engine):
    assert engine.metrics.hit_rate is None


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 6), st.integers(0, 5)), min_size=1, max_size=6))
@settings(deadline=None, max_examples=40)
def test_the_requests_shares_of_the_time_are_all_of_it(asked):
    device = Timed(8, 4)  # few blocks: some are preempted, and computed again
    scheduler = Scheduler(BlockPool(8, 4), max_num_seqs=4, max_num_batched_tokens=8, max_model_len=32)
    engine = Engine(scheduler, device, lambda: device.now)
    requests = [Request(str(index), [7] * prompt, Limits(most)) for index, (prompt, most, _) in enumerate(asked)]
    told = 0.0
    for request, (*_, steps) in zip(requests, asked, strict=True):
        engine.add_request(request)
        for _ in range(steps):
            engine.step()
        told += request.times.newly_spent_s()
    engine.finish(requests[0].request_id)  # if it is there still
    run(engine)
    busy = engine.metrics.schedule_s + engine.metrics.execute_s
    assert math.isclose(math.fsum(request.times.spent_s for request in requests), busy)
    assert math.isclose(told + math.fsum(request.times.newly_spent_s() for request in requests), busy)
    assert all(request.times.spent_s > 0 for request in requests[1:])


def test_who_has_more_computed_in_a_step_pays_more_of_it(engine):
    long, short = Request("a", list(range(7)), Limits(1)), Request("b", [7], Limits(1))
    for request in (long, short):
        engine.add_request(request)
    run(engine)
    assert (long.times.spent_s, short.times.spent_s) == (7 / 8, 1 / 8)
