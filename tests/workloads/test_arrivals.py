"""Arrivals and lengths: their statistics, their seeds, and what is refused."""

import random
import statistics
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniserve.errors import InvalidRequestError
from miniserve.workloads.arrivals import Lengths, arrival_times, drawn


def gaps(rate, cv, count=20_000):
    times = list(islice(arrival_times(rate, random.Random(1), cv=cv), count))
    assert times == sorted(times)
    return [later - earlier for earlier, later in zip([0.0, *times], times, strict=False)]


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gaps_have_the_rate_and_the_variation(cv):
    found = gaps(4.0, cv)
    mean = statistics.fmean(found)
    assert mean == pytest.approx(0.25, rel=0.1)
    assert statistics.pstdev(found) / mean == pytest.approx(cv, rel=0.1)


def test_poisson_gaps_are_exponential():
    found = sorted(gaps(1.0, 1.0))
    assert found[len(found) // 2] == pytest.approx(0.6931, rel=0.05)  # ln 2
    assert sum(gap > 3 for gap in found) / len(found) == pytest.approx(0.0498, rel=0.1)  # e^-3


def test_no_variation_is_even():
    assert list(islice(arrival_times(2.0, random.Random(), cv=0), 3)) == [0.5, 1.0, 1.5]


@pytest.mark.parametrize(("rate", "cv"), [(0, 1), (-1, 1), (float("nan"), 1), (float("inf"), 1), (1, -0.1)])
def test_impossible_rates_are_refused_at_once(rate, cv):
    with pytest.raises(InvalidRequestError, match="rate"):
        arrival_times(rate, random.Random(), cv=cv)


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.integers())
def test_uniform_lengths_stay_within(low, more, seed):
    lengths = Lengths.parse(f"{low}-{low + more}")
    assert low <= lengths.draw(random.Random(seed)) <= low + more
    assert Lengths.parse(str(lengths)) in (lengths, Lengths(low, low))


def test_lognormal_lengths_have_the_median_and_the_90th_percentile():
    lengths, rng = Lengths.parse("129/424"), random.Random(0)
    assert str(lengths) == "129/424"
    values = sorted(lengths.draw(rng) for _ in range(20_000))
    assert values[10_000] == pytest.approx(129, rel=0.05)
    assert values[18_000] == pytest.approx(424, rel=0.05)
    assert min(Lengths.parse("1/50").draw(rng) for _ in range(1000)) == 1


@pytest.mark.parametrize("text", ["", "0", "-3", "5-4", "5/4", "1.5", "a", "1-2-3", "10 - 20 tokens", "0-5", "9" * 10])
def test_lengths_that_are_none_are_refused_by_name(text):
    with pytest.raises(InvalidRequestError, match="length"):
        Lengths.parse(text)


def test_a_seed_decides_everything():
    def requests(seed):
        rng = random.Random(seed)
        return list(islice(drawn(Lengths(1, 100), Lengths(1, 100), rng, arrival_times(1.0, rng)), 50))

    assert requests(1) == requests(1) != requests(2)
    assert {request.at_s for request in islice(drawn(Lengths(1, 9), Lengths(1, 9), random.Random(0)), 5)} == {0.0}
