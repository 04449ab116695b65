"""The learning rate: it rises, falls, and is what it was said to be at the joints."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniserve.errors import InvalidRequestError
from miniserve.train.schedule import Cosine


@given(steps=st.integers(1, 500), share=st.floats(0, 0.99), floor=st.floats(0, 1))
def test_up_and_then_down(steps, share, floor):
    rate = Cosine(2.0, steps, int(share * steps), floor)
    rates = [rate(step) for step in range(steps)]
    top = rate.warmup
    assert rates[top] == pytest.approx(2.0)
    assert all(0 < low < high <= 2.0 for low, high in pairwise(rates[:top]))
    assert all(low <= high + 1e-12 for high, low in pairwise(rates[top:]))
    if steps - top > 1:
        assert rates[-1] == pytest.approx(2.0 * floor)
    assert rate(steps + 1000) == pytest.approx(2.0 if steps - top == 1 and floor == 1 else 2.0 * floor)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"peak": 0}, "learning_rate is 0"), ({"peak": float("nan")}, "learning_rate"),
        ({"warmup": 5}, "5 steps of warm-up of 5"), ({"floor": 2}, "is 2 of the peak"), ({"steps": 0}, "of 0"),
    ],
)  # fmt: skip
def test_nonsense_is_refused(options, says):
    with pytest.raises(InvalidRequestError, match=says):
        Cosine(**({"peak": 1.0, "steps": 5, "warmup": 1} | options))
