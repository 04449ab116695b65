"""Percentiles without keeping the values."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from miniserve.simulate.tally import RELATIVE_ERROR, Sketch

values = st.lists(st.floats(1e-7, 1e6) | st.just(0.0), min_size=1, max_size=200)


@given(values, st.sampled_from([1, 50, 90, 99, 100]))
def test_percentiles_are_near_the_exact_ones(some, rank):
    sketch = Sketch()
    for value in some:
        sketch.add(value)
    exact = sorted(some)[max(1, math.ceil(rank / 100 * len(some))) - 1]
    assert abs(sketch.percentile(rank) - exact) <= 1.001 * RELATIVE_ERROR * exact
    assert sketch.most == max(some)
    assert math.isclose(sketch.total, sum(some), rel_tol=1e-9)


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=50), st.integers(1, 5))
def test_several_at_once_are_the_same(some, times):
    one, many = Sketch(), Sketch()
    for value in some:
        one.add(value, times)
    many.add_all(np.array(some), times)
    assert one.count == many.count
    assert math.isclose(one.total, many.total, rel_tol=1e-9)
    for rank in (10, 50, 99):
        assert math.isclose(one.percentile(rank), many.percentile(rank), rel_tol=2 * RELATIVE_ERROR)


def test_of_nothing():
    assert math.isnan(Sketch().percentile(50))
    assert Sketch().spread() is None
