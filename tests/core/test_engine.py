"""The loop: outputs, times, aborts, and an executor that fails."""

import pytest

from miniserve.core.block_pool import BlockPool
from miniserve.core.engine import Engine
from miniserve.core.request import FinishReason, Request
from miniserve.core.sampling_params import Limits
from miniserve.core.scheduler import Scheduler
from miniserve.errors import InvalidRequestError
from support.fake_device import FakeDevice, alone


class Clock:
    """Virtual time: the executor moves it."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class TimedDevice(FakeDevice):
    """A second for a step, and failure on demand."""

    def __init__(self, clock, *size):
        super().__init__(*size)
        self.clock, self.fails = clock, False

    def launch(self, step):
        self.clock.now += 1.0
        if self.fails:
            raise RuntimeError("the device is gone")
        return super().launch(step)


@pytest.fixture
def engine():
    clock = Clock()
    pool = BlockPool(32, 4)
    scheduler = Scheduler(pool, max_num_seqs=2, max_num_batched_tokens=16, max_model_len=64)
    made = Engine(scheduler, TimedDevice(clock, 32, 4), clock)
    made.pool, made.device = pool, made.executor
    return made


def request(name, prompt, max_tokens=4):
    return Request(name, prompt, Limits(max_tokens))


def drain(engine):
    outputs = []
    while engine.has_work:
        outputs += engine.step()
        engine.scheduler.check()
    assert engine.pool.num_free == engine.pool.num_blocks
    return outputs


def test_outputs_are_the_tokens_in_order_and_one_end(engine):
    for name, prompt in (("a", [1, 2, 3]), ("b", [4] * 20), ("c", [5])):
        engine.add_request(request(name, prompt))
    outputs = drain(engine)
    for name, prompt in (("a", [1, 2, 3]), ("b", [4] * 20), ("c", [5])):
        mine = [output for output in outputs if output.request.request_id == name]
        assert [list(output.tokens) for output in mine] == [[token] for token in alone(prompt, 4)]
        assert [output.finish_reason for output in mine] == [None] * 3 + [FinishReason.LENGTH]


def test_times_count_the_queue(engine):
    first, second, third = (request(name, [1, 2]) for name in "abc")  # two seats: the third waits
    for each in (first, second, third):
        engine.add_request(each)
    drain(engine)
    assert (first.times.queued_s, first.times.scheduled_s, first.times.ttft_s) == (100.0, 100.0, 1.0)
    assert (third.times.queued_s, third.times.scheduled_s, third.times.ttft_s) == (100.0, 104.0, 5.0)
    assert first.times.itl_s == third.times.itl_s == [1.0, 1.0, 1.0]


def test_abort_by_name(engine):
    runs, waits = request("runs", [1, 2], 20), request("waits", [3])
    for each in (runs, request("other", [9], 20), waits):
        engine.add_request(each)
    engine.step()
    assert engine.finish("runs")
    assert engine.finish("waits")
    assert not engine.finish("runs")
    assert not engine.finish("nobody")
    assert runs.finish_reason is waits.finish_reason is FinishReason.ABORT
    assert {output.request.request_id for output in drain(engine)} == {"other"}
    engine.add_request(request("runs", [1, 2]))  # the name is free again
    drain(engine)


def test_names_are_unique_among_the_living(engine):
    engine.add_request(request("a", [1]))
    with pytest.raises(InvalidRequestError, match="request a is already running"):
        engine.add_request(request("a", [2]))
    drain(engine)


def test_a_refused_request_leaves_nothing_behind(engine):
    with pytest.raises(InvalidRequestError, match="max_model_len is 64"):
        engine.add_request(request("a", [1] * 64))
    assert not engine.has_work
    engine.add_request(request("a", [1]))
    drain(engine)


def test_a_failing_executor_ends_its_step_and_nothing_else(engine):
    doomed, spared = [request("a", [1]), request("b", [2])], request("c", [3])
    for each in (*doomed, spared):
        engine.add_request(each)
    engine.device.fails = True
    with pytest.raises(RuntimeError, match="the device is gone"):
        engine.step()
    assert [each.finish_reason for each in doomed] == [FinishReason.ERROR] * 2
    engine.scheduler.check()
    engine.device.fails = False
    drain(engine)
    assert spared.output_token_ids == alone([3], 4)


def test_a_step_without_work_does_nothing(engine):
    assert engine.step() == []
    assert engine.device.clock.now == 100.0
