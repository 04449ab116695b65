"""Load or compute: the choice against trying every length, and what it is made from."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.core.loading import TRIES, Piece, Rate, Recompute, worth_loading


def test_long_prefixes_are_worth_loading_and_short_ones_from_fast_tiers_alone():
    compute = Recompute(flops_per_token=1e9, flops_per_pair=0, flops_per_s=1e12)  # a millisecond a token
    assert worth_loading(0, [Piece(100, 0.05)], compute) == 100
    assert worth_loading(0, [Piece(100, 0.2)], compute) == 0
    assert worth_loading(0, [Piece(100, 0.05), Piece(100, 0.2)], compute) == 100
    assert worth_loading(0, [Piece(100, 0.2), Piece(900, 0.05)], compute) == 1000, "the slow piece is on the way"
    assert worth_loading(0, [], compute) == 0
    assert worth_loading(0, [Piece(100, 0.1)], compute) == 100, "what is equal is loaded"


def test_attention_makes_late_tokens_dearer():
    compute = Recompute(flops_per_token=1e6, flops_per_pair=1e6, flops_per_s=1e9)
    assert compute(0, 10) == pytest.approx(10e-3 + 55e-3)
    assert compute(100, 10) == pytest.approx(10e-3 + 1055e-3)
    assert compute(0, 110) == pytest.approx(compute(0, 100) + compute(100, 10))
    assert worth_loading(0, [Piece(10, 0.5)], compute) == 0
    assert worth_loading(100, [Piece(10, 0.5)], compute) == 10


def test_the_measured_rate_gives_back_what_was_measured():
    compute = Recompute.measured(1e9, 1e5, 256, 0.5)
    assert compute(0, 256) == pytest.approx(0.5)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    start=st.integers(0, 1000),
    tiers=st.lists(st.tuples(st.integers(1, 8), st.floats(0, 0.02)), max_size=4),
    linear=st.floats(1, 10), pair=st.floats(0, 0.1),
)  # fmt: skip
def test_no_other_length_gains_more(start, tiers, linear, pair):
    """Block by block, which `worth_loading` does not look at, from tiers that load linearly."""
    compute = Recompute(linear, pair, 1e3)
    best = worth_loading(start, [Piece(count, count * each_s) for count, each_s in tiers], compute)
    blocks = [each_s for count, each_s in tiers for _ in range(count)]
    gains = [compute(start, count) - sum(blocks[:count]) for count in range(len(blocks) + 1)]
    assert gains[best] == pytest.approx(max(gains), abs=1e-9)


def test_a_tier_is_free_until_it_is_known_and_forgiven_in_time():
    rate = Rate()
    assert rate.bytes_per_s is None
    assert rate.seconds(10**9) == 0
    rate.observe(1000, 1.0)
    assert rate.seconds(500) == pytest.approx(0.5)
    for _ in range(50):
        rate.observe(1000, 0.1)
    assert rate.bytes_per_s == pytest.approx(10_000, rel=0.01), "recent ones count"
    for _ in range(TRIES - 1):
        rate.decline()
    assert rate.bytes_per_s is not None
    rate.decline()
    assert rate.bytes_per_s is None
