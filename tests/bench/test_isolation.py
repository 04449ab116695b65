"""The attack's statistics, against going through all cases."""

import itertools
import random

import pytest

from miniserve.bench.isolation import median_interval, signed_rank


@pytest.mark.parametrize(
    "values", [[3.0, 1.0, -2.0, 5.0, 4.0, -0.5], [1.0, 1.0, -1.0, 2.0, 2.0, 2.0], [1.0] * 9, [0.0, 1.0]]
)
def test_signed_rank_is_what_all_signs_give(values):
    """By going through every way to give signs to the same sizes."""
    sizes = [abs(each) for each in values if each]
    ranks = [sum(other < size for other in sizes) + (sum(other == size for other in sizes) + 1) / 2 for size in sizes]
    centre = sum(ranks) / 2
    found = abs(sum(rank for rank, each in zip(ranks, filter(None, values), strict=True) if each > 0) - centre)
    sums = [sum(itertools.compress(ranks, signs)) for signs in itertools.product((0, 1), repeat=len(ranks))]
    assert signed_rank(values) == pytest.approx(sum(abs(each - centre) >= found for each in sums) / len(sums))
    assert signed_rank(values) == signed_rank([-each for each in values])


def test_signed_rank_of_nothing():
    assert signed_rank([]) == signed_rank([0.0, 0.0]) == 1.0


def test_the_tests_hold_their_levels():
    """On made-up pairs: of those without a difference few are called different, and the median is where it is said."""
    draw = random.Random(1)
    samples = [[draw.gauss(0, 1) for _ in range(20)] for _ in range(400)]
    assert sum(signed_rank(sample) < 0.05 for sample in samples) == pytest.approx(20, abs=15)
    intervals = [median_interval(sample, 0.95) for sample in samples]
    assert sum(low <= 0 <= high for low, high in intervals) >= 375
    assert median_interval([1.0, 2.0], 0.95) == (float("-inf"), float("inf"))
