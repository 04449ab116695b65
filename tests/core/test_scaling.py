"""The planner: enough at once, less after a while, and no back and forth."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.core.scaling import Capacity, Counts, Meter, Observed, Planner, need
from miniserve.errors import InvalidRequestError

CAPACITY = Capacity(1000.0, 20.0, 0.05)
LEAST, MOST = Counts(1, 1), Counts(12, 9)


def load(prefill, decode, seconds=10.0):
    """One that needs so many engines of each kind."""
    requests = 40
    tokens = round(prefill * CAPACITY.prompt_tokens_per_s * seconds)
    output = decode * CAPACITY.seats / (requests / seconds * CAPACITY.token_s)
    return Observed(seconds, requests, 2 * tokens, tokens, 0, 0, output)


def follow(loads, current=LEAST, hold=4, margin=0.2, least=LEAST, most=MOST):
    """The counts after each interval."""
    planner, counts = Planner(lambda _: CAPACITY, least, most, hold=hold, margin=margin), []
    for observed in loads:
        current = planner.wanted(observed, current)
        counts.append(current)
    return counts


needs = st.floats(0, 20)
starts = st.builds(Counts, st.integers(0, 20), st.integers(0, 20))


@settings(deadline=None)
@given(st.lists(st.tuples(needs, needs), min_size=1, max_size=30), starts, st.integers(1, 6), st.floats(0, 1))
def test_it_is_enough_and_within_bounds(pairs, start, hold, margin):
    loads = [load(*pair) for pair in pairs]
    for observed, counts in zip(loads, follow(loads, start, hold, margin), strict=True):
        for count, wanted, least, most in zip(counts, need(observed, CAPACITY), LEAST, MOST, strict=True):
            assert least <= count <= most
            assert count >= min(wanted, most)


@settings(deadline=None)
@given(st.data())
def test_a_load_that_varies_within_the_margin_moves_no_count_back_and_forth(data):
    margin = data.draw(st.floats(0, 0.5))
    base = data.draw(st.floats(0.1, 8))
    factors = data.draw(st.lists(st.floats(1, 1 + margin), min_size=2, max_size=40))
    start, hold = data.draw(starts), data.draw(st.integers(1, 6))
    # A hair wider than what was drawn: token counts are whole.
    counts = follow([load(base * each, base * each) for each in factors], start, hold, margin + 0.01)
    for kind in (0, 1):
        turns = [later[kind] - earlier[kind] for earlier, later in pairwise(counts)]
        turns = [1 if turn > 0 else -1 for turn in turns if turn]
        assert -1 not in turns or 1 not in turns[turns.index(-1) :], "up again after it went down"


@given(st.floats(0, 20), starts, st.integers(1, 6))
def test_a_constant_load_settles(level, start, hold):
    """Once as much as is needed, and once as little, after `hold` intervals: then nothing more happens."""
    counts = follow([load(level, level)] * (hold + 10), start, hold)
    assert len(set(counts[hold - 1 :])) == 1
    assert len(set(counts[: hold - 1])) <= 1


def test_it_goes_up_at_once_and_down_after_a_while():
    counts = follow([load(1, 1)] * 4 + [load(5, 2.5)] + [load(1, 1)] * 5, hold=4)
    assert [each.prefill for each in counts] == [1, 1, 1, 1, 5, 5, 5, 5, 2, 2]  # with the margin, 1 needs two
    assert [each.decode for each in counts] == [1, 1, 1, 1, 3, 3, 3, 3, 2, 2]


def test_each_interval_of_the_hold_counts():
    """A small peak in the middle of a lull keeps what it needs, and no more."""
    counts = follow([load(6, 1)] + [load(1, 1)] * 2 + [load(2.4, 1)] + [load(1, 1)] * 4, hold=4)
    assert [each.prefill for each in counts] == [6, 6, 6, 6, 3, 3, 3, 2]


def test_what_waits_and_what_is_decoded_is_load():
    calm = Observed(10.0, 40, 40_000, 20_000, 0, 10, 100.0)
    assert need(calm, CAPACITY) == pytest.approx((2.0, 1.0))
    assert need(calm._replace(waiting_tokens=10_000), CAPACITY).prefill == pytest.approx(3)
    assert need(calm._replace(decoding=60), CAPACITY).decode == pytest.approx(3)


def test_who_can_do_nothing_in_time_is_never_enough():
    assert need(load(1, 1), Capacity(0.0, 20.0, 0.05)).prefill == math.inf
    assert need(Observed(10.0, 0, 0, 0, 0, 0, 0.0), Capacity(0.0, 0.0, 0.0)) == (0.0, 0.0)
    planner = Planner(lambda _: Capacity(0.0, 0.0, 0.0), LEAST, MOST)
    assert planner.wanted(load(1, 1)._replace(decoding=1), LEAST) == MOST


def test_the_meter_counts_an_interval_and_remembers_how_long_outputs_are():
    meter = Meter()
    meter.came(100, 60)
    meter.came(50, 0)
    meter.ended(30)
    meter.ended(50)
    assert meter.read(5.0, 7, 3) == Observed(5.0, 2, 150, 60, 7, 3, 40.0)
    meter.came(10, 10)
    assert meter.read(5.0, 0, 0) == Observed(5.0, 1, 10, 10, 0, 0, 40.0)


@pytest.mark.parametrize(
    ("least", "most", "options"),
    [
        (Counts(0, 0), Counts(1, 1), {}),
        (Counts(2, 1), Counts(1, 1), {}),
        (Counts(-1, 1), Counts(1, 1), {}),
        (LEAST, MOST, {"hold": 0}),
        (LEAST, MOST, {"margin": -0.1}),
        (LEAST, MOST, {"margin": math.nan}),
    ],
)
def test_nonsense_is_refused(least, most, options):
    with pytest.raises(InvalidRequestError, match=r"planner between|hold is"):
        Planner(lambda _: CAPACITY, least, most, **options)
