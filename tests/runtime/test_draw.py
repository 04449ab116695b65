"""Drawing: what temperature, top_k, top_p and min_p leave, one rule at a time, and that shares come out right."""

import math
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest

from miniserve.runtime import draw
from miniserve.runtime.uniform import uniform
from support.slow_sampler import INF, adjusted, chi_square, choose, chosen, distribution, request

LAST_U = 1 - 2.0**-53  # the largest number `uniform` can return


@contextmanager
def numbers(value):
    """Every draw uses this number."""
    with mock.patch.object(draw, "uniform", return_value=value):
        yield


def support(logits, **params):
    """Every token that can be drawn, found by drawing at 200 evenly spaced numbers."""
    with mock.patch.object(draw, "uniform", lambda seed, index: (seed + 0.5) / 200):
        return set(choose(logits, *(request(seed=seed, **{"temperature": 1.0} | params) for seed in range(200))))


def log(*probabilities):
    return [math.log(p) if p else -INF for p in probabilities]


def test_the_token_that_crosses_top_p_is_kept():
    logits = log(0.1, 0.5, 0.15, 0.25)
    assert support(logits, top_p=0.49) == {1}
    assert support(logits, top_p=0.51) == {1, 3}
    assert support(logits, top_p=0.74) == {1, 3}
    assert support(logits, top_p=0.76) == {1, 2, 3}
    assert support(logits, top_p=0.95) == support(logits) == {0, 1, 2, 3}
    assert support(logits, top_p=1e-300) == {1}


def test_top_p_stops_where_it_is_reached_exactly():
    assert support([0.0] * 4, top_p=0.5) == {0, 1}
    assert support([0.0] * 4, top_p=0.75) == {0, 1, 2}


def test_top_p_is_of_what_top_k_leaves():
    # Of the two likeliest, 0.5 and 0.25, the first has two thirds.
    assert support(log(0.1, 0.5, 0.15, 0.25), top_k=2, top_p=0.66) == {1}
    assert support(log(0.1, 0.5, 0.15, 0.25), top_k=2, top_p=0.67) == {1, 3}


def test_temperature_comes_before_the_filters():
    logits = log(0.1, 0.5, 0.15, 0.25)
    # Squared and renormalised: 0.03, 0.72, 0.07, 0.18. Square roots: 0.17, 0.37, 0.20, 0.26.
    assert support(logits, temperature=0.5, top_p=0.7) == {1}
    assert support(logits, temperature=2.0, top_p=0.7) == {1, 2, 3}
    assert support(logits, temperature=0.5, min_p=0.3) == {1}
    assert support(logits, temperature=1.0, min_p=0.25) == {1, 2, 3}
    assert support(logits, temperature=2.0, min_p=0.4) == {0, 1, 2, 3}


def test_top_k_zero_and_a_large_one_are_off():
    logits = log(0.1, 0.5, 0.15, 0.25)
    for off in (0, 4, 5, 10**30):
        assert support(logits, top_k=off) == {0, 1, 2, 3}
    assert support(logits, top_k=3) == {1, 2, 3}
    assert support(logits, top_k=1) == {1}


def test_min_p_is_a_share_of_the_likeliest():
    logits = log(0.1, 0.5, 0.15, 0.25)
    assert support(logits, min_p=0.19) == {0, 1, 2, 3}
    assert support(logits, min_p=0.21) == {1, 2, 3}
    assert support(logits, min_p=0.31) == {1, 3}
    assert support(logits, min_p=1.0) == {1}
    assert support([0.0, -1.0, 0.0], min_p=1.0) == {0, 2}


def test_equal_logits_are_kept_from_the_smallest_id_on():
    """As greedy takes the first of equals; so top_k=1 is greedy, and the count is exact."""
    logits = [1.0, 2.0, 2.0, -0.0, 2.0, 0.0]
    assert choose(logits, request()) == [1]
    for count, kept in enumerate(([1], [1, 2], [1, 2, 4], [0, 1, 2, 4], [0, 1, 2, 3, 4]), start=1):
        assert support(logits, top_k=count) == set(kept)


@pytest.mark.parametrize("width", [50, 5000, 20000])
def test_top_p_over_a_wide_vocabulary(width):
    """A nucleus that the first look holds, one that the second holds, and one that only a full sort finds."""
    logits = np.full(20000, -INF, np.float32)
    members = np.random.default_rng(0).permutation(20000)[:width]
    logits[members] = np.linspace(0, 1, width, dtype=np.float32)
    requests = [request(temperature=1.0, top_p=0.9, seed=seed) for seed in range(12)]
    requests[7:7] = [request(temperature=1.0, top_k=3), request()]  # mates that look at fewer
    with numbers(LAST_U):
        assert choose(logits, requests[0])[0] == np.flatnonzero(distribution(logits, requests[0].params))[-1]
    assert choose(logits, *requests) == [chosen(logits, each, uniform(each.seed, 0)) for each in requests]


@pytest.mark.parametrize("params", [{}, {"top_k": 3}, {"top_p": 0.8}, {"min_p": 0.1}, {"temperature": 1e-300}])
def test_a_token_without_probability_is_never_drawn(params):
    logits = [-INF, -900.0, -INF, 1.0, -INF, 2.0, 3.0, -INF, -900.0, -INF]
    for u in (0.0, 5e-324, 2.0**-53, 0.5, LAST_U):
        with numbers(u):
            token = choose(logits, request(**{"temperature": 1.0} | params))
        assert token[0] in {3, 5, 6}
    with numbers(0.0):
        assert choose(logits, request(temperature=1.0)) == [3]
    with numbers(LAST_U):
        assert choose(logits, request(temperature=1.0)) == [6]


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-30])
def test_a_tiny_temperature_is_greedy(temperature):
    logits = np.random.default_rng(0).normal(0, 5, (30, 100)).round(3)
    logits[:, 50] = -INF
    rows = range(len(logits))
    cold = choose(logits, *(request(temperature=temperature, seed=row) for row in rows))
    assert cold == choose(logits, *(request() for _ in rows)) == logits.argmax(-1).tolist()


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"temperature": 1.0, "top_k": 4},
        {"temperature": 1.5, "top_p": 0.8},
        {"temperature": 1.5, "min_p": 0.1},
        {"temperature": 1.2, "top_k": 6, "top_p": 0.95, "min_p": 0.05, "logit_bias": {2: 0.7}},
    ],
)
def test_draws_have_the_right_shares(params):
    logits = np.array([0.0, 1.0, -1.0, 2.0, 0.5, -2.0, 1.5, 0.2], np.float32)
    requests = [request(output=[0] * index, seed=seed, **params) for seed in range(250) for index in range(20)]
    counts = np.bincount(choose(logits, *requests), minlength=8)
    assert chi_square(counts, distribution(adjusted(logits, requests[0]), requests[0].params))
