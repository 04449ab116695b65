"""Who answers whom: shares are kept, keys stay where they are, and a rollback undoes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniserve.errors import InvalidRequestError
from miniserve.server.rollout.traffic import Traffic, point

shares = st.floats(0, 1)


@given(st.text(), shares, shares)
def test_a_weight_that_grows_takes_no_key_back(key, one, other):
    less, more = sorted((one, other))
    if Traffic("1", "2", less).choose(key) == "2":
        assert Traffic("1", "2", more).choose(key) == "2"


@given(st.text())
def test_nobody_and_everybody(key):
    assert Traffic("1", "2", 0.0).choose(key) == "1" == Traffic("1").choose(key)
    assert Traffic("1", "2", 1.0).choose(key) == "2"
    assert Traffic("1").copies(key) is None
    assert Traffic("1", shadow="3").copies(key) == "3"
    assert Traffic("1", shadow="3", shadow_share=0.0).copies(key) is None


@pytest.mark.parametrize("weight", [0.01, 0.1, 0.5])
def test_a_share_is_kept(weight):
    """Of 20,000 keys; five standard deviations of a binomial."""
    number = 20_000
    canary = sum(Traffic("1", "2", weight).choose(f"request-{at}") == "2" for at in range(number))
    assert abs(canary - weight * number) < 5 * (number * weight * (1 - weight)) ** 0.5


def test_who_is_copied_has_nothing_to_do_with_who_gets_the_canary():
    number = 20_000
    both = sum(point(f"{at}") < 0.5 and point(f"{at}", "shadow") < 0.5 for at in range(number))
    assert abs(both / number - 0.25) < 0.02


@given(st.text(min_size=1), st.text(min_size=1), shares)
def test_a_rollback_undoes_a_canary_first_and_then_a_promotion(stable, other, weight):
    if stable == other:
        return
    before = Traffic(stable)
    tried = Traffic(stable, other, weight)
    assert tried.rolled_back() == before
    promoted = tried.promoted(other)
    assert (promoted.stable, promoted.canary, promoted.previous) == (other, None, stable)
    assert promoted.rolled_back() == before
    assert before.versions == {stable}
    assert tried.versions == {stable, other}


def test_a_shadow_that_is_promoted_is_no_shadow_of_itself():
    assert Traffic("1", shadow="2").promoted("2").shadow is None
    assert Traffic("1", shadow="3").promoted("2").shadow == "3"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Traffic("1", "2", 1.5), "weight is 1.5: it must be from 0 to 1"),
        (lambda: Traffic("1", "2", float("nan")), "weight is nan"),
        (lambda: Traffic("1", shadow="2", shadow_share=-0.1), "shadow_share is -0.1"),
        (lambda: Traffic("1", "1", 0.5), "version '1' is stable: it cannot be the canary, too"),
        (lambda: Traffic("1", None, 0.5), "weight is 0.5, and there is no canary"),
        (lambda: Traffic("1").promoted("1"), "version '1' is stable already"),
        (lambda: Traffic("1").rolled_back(), "none was stable before it"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(InvalidRequestError, match=message):
        make()
