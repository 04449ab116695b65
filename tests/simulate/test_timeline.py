"""What engines did over time: no second of it lost, whatever the slots, in memory that does not grow."""

import random
import tracemalloc
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniserve.errors import InvalidRequestError
from miniserve.simulate.cluster import Cluster
from miniserve.simulate.timeline import SERIES, Timeline
from miniserve.workloads.arrivals import Arrival, Lengths, arrival_times, drawn

steps = st.lists(st.tuples(st.floats(0, 3), st.floats(0, 5), *[st.floats(0, 9)] * len(SERIES)), min_size=1, max_size=20)


@given(steps, st.sampled_from([2, 6, 64]))
def test_integrals_are_exact(some, slots):
    timeline, now_s, expected = Timeline(slots), 0.0, np.zeros(len(SERIES))
    timeline.begin(["one"])
    for pause_s, length_s, *values in some:
        now_s += pause_s
        timeline.add(0, now_s, now_s + length_s, tuple(values))
        now_s += length_s
        expected += length_s * np.array(values)
    edges = np.minimum(np.arange(len(timeline.times_s()) + 1) * timeline.width_s, timeline.end_s)
    for name, whole in zip(SERIES, expected, strict=True):
        assert timeline.series(name).shape == (1, len(timeline.times_s()))
        assert np.sum(timeline.series(name)[0] * np.diff(edges)) == pytest.approx(whole)
    assert len(timeline.times_s()) <= slots


def test_one_request_alone(make):
    """It waits for nobody, runs from its arrival to its end, and its blocks, 10 to 17, are in use all the while."""
    timeline = Timeline(8)
    cluster = Cluster([make(num_blocks=20, block_size=16)], timeline=timeline)
    cluster.run(iter([Arrival(0.0, 160, 100)]))
    assert timeline.end_s == cluster.now_s
    for name, mean in {"waiting": 0, "running": 1, "busy": 1}.items():
        assert timeline.series(name)[0] == pytest.approx(mean)
    assert timeline.series("kv")[0].min() >= 10 / 20 - 1e-9
    assert timeline.series("kv")[0].max() <= 17 / 20 + 1e-9


def test_busy_is_what_engines_say(make):
    timeline = Timeline()
    cluster = Cluster([make()] * 2, prefill=[make()], timeline=timeline)
    rng = random.Random(0)
    cluster.run(islice(drawn(Lengths(20, 400), Lengths(1, 60), rng, arrival_times(300, rng)), 100))
    widths_s = np.diff(np.minimum(np.arange(len(timeline.times_s()) + 1) * timeline.width_s, timeline.end_s))
    assert timeline.names == ["prefill 0", "decode 0", "decode 1"]
    for at, instance in enumerate(cluster.instances):
        assert widths_s @ timeline.series("busy")[at] == pytest.approx(instance.busy_s)


def test_memory_does_not_grow_with_the_trace(make):
    """Five times as many requests, drawn one by one: what is held at most stays as it was."""

    def peak(number):
        rng = random.Random(0)
        arrivals = islice(drawn(Lengths.parse("50-100"), Lengths.parse("3-5"), rng, arrival_times(200, rng)), number)
        cluster = Cluster([make(num_blocks=40)] * 2, timeline=Timeline())
        tracemalloc.start()
        cluster.run(arrivals)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert cluster.tally.completed == number
        return most

    peak(50)  # what is made once
    short = peak(150)
    assert peak(750) < short + 50_000


@pytest.mark.parametrize("slots", [0, 1, 7, -2])
def test_slots_come_in_pairs(slots):
    with pytest.raises(InvalidRequestError, match="even number"):
        Timeline(slots)
