"""The recorder beside a real scheduler, on a device and a clock of our own: what it says is so, and it says it seldom."""

import math
from itertools import pairwise
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.core.block_pool import BlockPool
from miniserve.core.engine import Engine
from miniserve.core.kv_counts import MoveCounts, TierCounts
from miniserve.core.request import Request
from miniserve.core.sampling_params import Limits
from miniserve.core.scheduler import Scheduler
from miniserve.core.step_record import StepRecord
from miniserve.server.view.recorder import INTERVAL_S, MAX_STEPS, Recorder, bucket, name_of, runs, runs_of_set, split
from support.fake_device import FakeDevice

BLOCKS = st.integers(0, 60)


class Watched:
    """An engine and a recorder; each step takes `step_s` by the clock, each update `update_s` of effort."""

    def __init__(self, num_blocks=64, step_s=0.01, update_s=0.0):
        self.now = self.effort = 0.0
        self.step_s, self.update_s = step_s, update_s
        self.updates = []
        scheduler = Scheduler(BlockPool(num_blocks, 4), max_num_seqs=8, max_num_batched_tokens=16, max_model_len=200)
        self.engine = Engine(scheduler, FakeDevice(num_blocks, 4), lambda: self.now)
        self.moves, self.experts = SimpleNamespace(counts=MoveCounts()), None
        self.recorder = Recorder(
            self.engine,
            self.take,
            self.moves,
            lambda: self.experts,
            clock=lambda: self.now,
            effort=lambda: self.effort,
        )

    def take(self, update):
        self.effort += self.update_s
        self.updates.append((self.now, update))

    def add(self, name, prompt, max_tokens=40):
        self.engine.add_request(Request(name, prompt, Limits(max_tokens)))

    def step(self):
        self.now += self.step_s
        outputs = self.engine.step()
        deltas = [(None, SimpleNamespace(request=request), "", tokens) for request, tokens, _ in outputs]
        self.recorder.after_step(deltas)
        return outputs

    def drain(self):
        while self.engine.has_work:
            self.step()


def expand(flat):
    return [block for first, count in zip(flat[::2], flat[1::2], strict=True) for block in range(first, first + count)]


def quantile(sketch, q):
    left = q * sum(sketch.values())
    for each in sorted(sketch):
        left -= sketch[each]
        if left <= 0:
            return 1e-6 * math.exp((each + 0.5) / 50)
    return None


@given(st.lists(BLOCKS, max_size=40), st.sets(BLOCKS))
def test_runs_say_which_blocks(row, some):
    assert expand(runs(row)) == row
    assert expand(runs_of_set(some, 61)) == sorted(some)
    assert len(runs_of_set(some, 61)) == 2 * sum(block - 1 not in some for block in some)


@given(st.lists(st.floats(1e-6, 100), min_size=1))
def test_a_bucket_knows_a_value_to_two_percent(values):
    for value in values:
        assert 1e-6 * math.exp((bucket(value) + 0.5) / 50) == pytest.approx(value, rel=0.0102)


def test_names():
    names = [name_of(each) for each in ("7.0", "7.0/1", "7.1", "10.10/0", "4.0 7.0", "10.0 7.1/0")]
    assert names == ["7", "7/1", "7.1", "10.10/0", "7", "7.1/0"]


def test_where_a_step_went():
    def record(execute_s, **seconds):
        return StepRecord(0, 0.0, 0.5, execute_s, seconds, (), (), 0, 0, 0)

    assert split(record(4.0, forward=2.0, sample=1.0)) == {"schedule": 0.5, "forward": 2.0, "sample": 1.0, "other": 1.0}
    assert split(record(4.0)) == {"schedule": 0.5, "launch, wait": 4.0}
    assert split(record(1.0, forward=2.0)) == {"schedule": 0.5, "launch, wait": 1.0}  # it computed meanwhile


def test_nobody_watches_nothing_is_done():
    watched = Watched(update_s=1.0)
    for switched in (False, True):
        if switched:
            watched.recorder.switch(True)
            watched.recorder.switch(False)
        assert watched.engine.on_step is None
        watched.add("1.0", [1, 2, 3])
        watched.drain()
        watched.recorder.changed()
        assert (watched.updates, watched.recorder.due_in_s, watched.effort) == ([], None, 0)


@pytest.mark.parametrize(("update_s", "gap_s"), [(0.0, INTERVAL_S), (0.0004, INTERVAL_S), (0.003, 0.6)])
def test_updates_are_few_and_fewer_if_they_are_dear(update_s, gap_s):
    watched = Watched(update_s=update_s)
    watched.recorder.switch(True)
    for name in range(6):
        watched.add(f"{name}.0", [name] * 10, 100)
    watched.drain()
    times = [at for at, _ in watched.updates]
    gaps = [after - before for before, after in pairwise(times)]
    assert len(gaps) >= 2
    assert all(gap == pytest.approx(gap_s, abs=watched.step_s) for gap in gaps)
    assert min(gaps) > gap_s - 1e-9
    steps = [step.index for _, update in watched.updates for step in update.steps]
    assert steps == sorted(set(steps))
    assert max(len(update.steps) for _, update in watched.updates) == MAX_STEPS


def test_the_last_state_is_owed_until_it_is_sent():
    watched = Watched()
    watched.recorder.switch(True)
    assert watched.recorder.due_in_s == 0  # whoever comes is told how things are
    watched.recorder.send()
    assert watched.recorder.due_in_s is None
    watched.add("1.0", [1, 2, 3], 2)
    watched.drain()
    assert 0 < watched.recorder.due_in_s < INTERVAL_S
    watched.now += INTERVAL_S
    assert watched.recorder.due_in_s == 0
    watched.recorder.send()
    _, last = watched.updates[-1]
    assert (last.requests, last.free, last.waiting) == ([], 64, 0)
    watched.recorder.changed()  # an abort, say
    assert watched.recorder.due_in_s is not None


def test_tiers_and_moves_are_told():
    watched = Watched(step_s=0.02)
    watched.engine.metrics.tiers["host"] = TierCounts(capacity_bytes=100, used_bytes=60, hits=3, misses=2)
    watched.moves.counts.left(50, 0.1)
    watched.recorder.switch(True)
    watched.recorder.send()
    told = msgspec.json.decode(msgspec.json.encode(watched.updates[-1][1]))
    assert {name: told["moves"][name] for name in ("num_left", "held", "held_bytes", "num_arrived")} == {
        "num_left": 1, "held": 1, "held_bytes": 50, "num_arrived": 0,
    }  # fmt: skip
    assert told["tiers"] == [{"name": "host", "capacity_bytes": 100, "used_bytes": 60, "hits": 3, "misses": 2}]


def test_latencies_are_the_engines():
    watched = Watched(step_s=0.02)
    watched.recorder.switch(True)
    for name in range(3):  # they decode together
        watched.add(f"{name}.0", [name, 2, 3], 30)
    watched.now += 0.5
    watched.drain()
    watched.recorder.send()
    ttft, itl = {}, {}
    for _, update in watched.updates:
        for into, of in ((ttft, update.ttft), (itl, update.itl)):
            for key, count in of.items():
                into[key] = into.get(key, 0) + count
    assert quantile(ttft, 0.5) == pytest.approx(0.52, rel=0.02)
    assert quantile(itl, 0.99) == pytest.approx(0.02, rel=0.02)
    assert (sum(ttft.values()), sum(itl.values())) == (3, 87)
    assert watched.updates[-1][1].steps[-1].seconds.keys() == {"schedule", "launch, wait", "text, send"}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40), st.integers(1, 30)), min_size=1, max_size=8),
    st.integers(16, 64),
)
def test_an_update_says_what_is_so(asked, num_blocks):
    """Tables, shared blocks and cached ones, with prefixes in common, chunks, and preemption where blocks are few."""
    watched = Watched(num_blocks, step_s=1.0)
    watched.recorder.switch(True)
    preempted, told = 0, []
    for at, (text, length, more) in enumerate(asked):
        watched.add(f"{at}.0", [text] * min(length, 4 * num_blocks - more), more)
    while watched.engine.has_work:
        watched.step()
        scheduler, pool = watched.engine.scheduler, watched.engine.scheduler.pool
        _, update = watched.updates[-1]
        assert [(r.name, expand(r.blocks)) for r in update.requests] == [
            (name_of(r.request_id), list(r.block_table)) for r in scheduler.running
        ]
        assert expand(update.cached) == [block for block in range(num_blocks) if pool.is_cached(block)]
        assert (update.free, update.waiting) == (pool.num_free, scheduler.num_waiting)
        (step,) = update.steps
        assert step.index == update.totals.steps - 1
        told += step.parts
        preempted += len(step.preempted)
    metrics = watched.engine.metrics
    assert sum(part.tokens for part in told) == metrics.num_computed_tokens
    assert preempted == metrics.num_preemptions
    assert update.totals.output == sum(more for _, _, more in asked)
    assert msgspec.json.decode(msgspec.json.encode(update))["totals"]["finished"] == len(asked)


def test_experts_are_told_where_they_are_counted():
    watched = Watched()
    watched.recorder.switch(True)
    watched.recorder.send()
    watched.experts = [[3, 1], [0, 4]]
    watched.now += 1
    watched.recorder.changed()
    watched.recorder.send()
    assert [update.experts for _, update in watched.updates] == [[], [[3, 1], [0, 4]]]
