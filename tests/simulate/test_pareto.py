"""The frontier, against its definition; and the numbers of users that a sweep may name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniserve.errors import InvalidRequestError
from miniserve.simulate.pareto import Point, frontier, parse_concurrencies, sweep

points = st.lists(st.builds(Point, st.just(1), st.sampled_from(range(6)), st.sampled_from(range(6)), st.just({})))


@given(points)
def test_nobody_on_the_frontier_is_beaten(some):
    kept = {(point.speed, point.throughput) for point in frontier(some)}
    all_points = {(point.speed, point.throughput) for point in some}
    beaten = {
        (x, y) for x, y in all_points if any((a >= x and b >= y) and (a, b) != (x, y) for a, b in all_points)
    }  # fmt: skip
    assert kept == all_points - beaten
    assert len(frontier(some)) == len(kept)


@pytest.mark.parametrize(
    ("text", "users"), [("1,8,3", [1, 3, 8]), ("1-8", [1, 2, 4, 8]), ("3-20", [3, 6, 12, 20]), ("5", [5])]
)
def test_users_in_words(text, users):
    assert parse_concurrencies(text) == users


@pytest.mark.parametrize("text", ["", "0,1", "8-1", "0-4", "a", "1-", "1,,2", "1.5", ",".join(map(str, range(1, 70)))])
def test_no_users_in_words(text):
    with pytest.raises(InvalidRequestError, match="sweep"):
        parse_concurrencies(text)


def test_who_gets_one_token_has_no_speed():
    found = {1: {"tokens_per_s_user": None}, 2: {"tokens_per_s_user": 5.0, "output_tokens_per_s_device": 7.0}}
    assert [(point.concurrency, point.speed, point.throughput) for point in sweep(found.get, [1, 2])] == [(2, 5.0, 7.0)]
