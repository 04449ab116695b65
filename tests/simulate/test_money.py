"""What tokens cost, against arithmetic by hand."""

import pytest

from miniserve.simulate.money import Swing, break_even, swings, usd_per_million


def test_the_published_price_of_a_day():
    """DeepSeek, 2025: 226.75 nodes of eight at $2 an hour, 168 billion output tokens a day: $0.518 a million."""
    assert usd_per_million(226.75 * 8 * 2, 168e9 / 86400) == pytest.approx(87072 / 168e3)


def test_at_the_break_even_price_tokens_cost_the_same():
    price = break_even(300.0, 100.0, 1.41)
    assert price == pytest.approx(4.23)
    assert usd_per_million(price, 300.0) == pytest.approx(usd_per_million(1.41, 100.0))


def test_the_widest_swing_is_first_whichever_end_is_dearer():
    found = swings({"a little": (9, 11), "much, falling": (20, 5), "nothing": (10, 10)}, float)
    assert found == [Swing("much, falling", 20, 5), Swing("a little", 9, 11), Swing("nothing", 10, 10)]
    assert [each.width for each in found] == [15, 2, 0]
