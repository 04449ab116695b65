"""A day: its hours, its bursts, and the mean of both."""

import random
from itertools import takewhile

import numpy as np
import pytest

from miniserve.errors import InvalidRequestError
from miniserve.workloads.arrivals import Lengths
from miniserve.workloads.day import DAY_S, Day

ONE = Lengths(1, 1)


def moments(day, seed=0, days=1):
    arrivals = day.arrivals(random.Random(seed), day.rate_per_s)
    return np.array([arrival.at_s for arrival in takewhile(lambda each: each.at_s < days * DAY_S, arrivals)])


def test_the_hours_are_a_cosine_with_its_mean():
    day = Day(ONE, ONE, 0.5, night=0.25, peak=15 / 24, bursts=0)
    by_hour = np.histogram(moments(day), bins=24, range=(0, DAY_S))[0] / 3600
    middles = (np.arange(24) + 0.5) * 3600
    expected = np.array([day.calm_rate(at_s, 0.5) for at_s in middles])
    assert expected.mean() == pytest.approx(0.5, rel=1e-6)
    assert max(expected) / min(expected) == pytest.approx(4, rel=0.05)
    assert np.argmax(expected) in (14, 15)
    assert np.abs(by_hour - expected).max() < 5 * (0.8 / 3600) ** 0.5  # five deviations of a Poisson count


def test_bursts_come_on_top_and_the_mean_stays():
    calm, bursting = (Day(ONE, ONE, 0.5, night=1, bursts=bursts, times=3) for bursts in (0, 48))
    found = [moments(day, days=4) for day in (calm, bursting)]
    for each in found:
        assert len(each) / (4 * DAY_S) == pytest.approx(0.5, rel=0.06)
    by_minute = [np.histogram(each, bins=5760, range=(0, 4 * DAY_S))[0] for each in found]
    dispersion = [each.var() / each.mean() for each in by_minute]
    assert dispersion[0] == pytest.approx(1, abs=0.1)  # Poisson
    assert dispersion[1] > 5


def test_time_lapse_keeps_the_mean_and_the_hours():
    day = Day(ONE, ONE, 2.0, bursts=2, day_s=DAY_S / 8)
    by_hour = np.histogram(moments(day, days=1 / 8), bins=24)[0]
    assert by_hour.sum() / (DAY_S / 8) == pytest.approx(2, rel=0.1)
    assert np.argmax(by_hour) in range(11, 18)


def test_a_seed_decides_it():
    day = Day(ONE, ONE, 0.1)
    assert np.array_equal(moments(day, 3), moments(day, 3))
    assert not np.array_equal(moments(day, 3)[:9], moments(day, 4)[:9])


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate_per_s": 0},
        {"night": 0},
        {"night": 1.1},
        {"bursts": -1},
        {"times": 0.5},
        {"bursts": 300},
        {"burst_s": 0},
    ],
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(InvalidRequestError, match="a day that cannot be"):
        Day(**{"prompts": ONE, "outputs": ONE, "rate_per_s": 1.0, **wrong})
