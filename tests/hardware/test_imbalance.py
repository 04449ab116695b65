"""A power law's busiest rank: by hand where chance has no say, beside timings, and never below the mean."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniserve.errors import InvalidRequestError
from miniserve.hardware.imbalance import SPAN, _possible, _quantile, _with_copies, power_law_imbalance
from miniserve.hardware.shape import Experts, Parallel

DEEPSEEK = Experts(256, 8, 2048)


def test_by_hand():
    """Every expert a rank of its own: the busiest expert over the mean, wherever they land."""
    loads = [_quantile(1.2, (at + 0.5) / 4) for at in range(4)]
    assert power_law_imbalance(1.2, Experts(4, 1, 8), Parallel(expert=4)) == pytest.approx(max(loads) * 4 / sum(loads))
    assert power_law_imbalance(1.2, DEEPSEEK, Parallel()) == 1.0
    assert _quantile(0, 0.5) == (SPAN + 1) / 2
    assert _quantile(1, 0.5) == pytest.approx(SPAN**0.5)
    assert _quantile(2, 0.5) == pytest.approx(2 / (1 + 1 / SPAN))


def test_copies_go_to_the_busiest():
    assert _with_copies([1.0, 8.0, 3.0], 2) == [3.0, 8 / 3, 8 / 3, 8 / 3, 1.0]
    assert sorted(_with_copies([1.0, 8.0, 3.0], 3)) == [1.0, 1.5, 1.5, 8 / 3, 8 / 3, 8 / 3]


@pytest.mark.parametrize(("exponent", "ranks", "slower"), [(1.01, 8, 1.62), (1.2, 8, 1.95), (1.01, 32, 2.54)])
def test_kernels_are_as_much_slower(exponent, ranks, slower):
    """TensorRT-LLM's FP8 experts of DeepSeek-V3's size on an H100, 8,192 tokens, against an even load (AIConfigurator's
    timings, one draw each): 1.44 ms, and 2.80 ms under 1.2 at 8 ranks."""
    assert power_law_imbalance(exponent, DEEPSEEK, Parallel(expert=ranks)) == pytest.approx(slower, rel=0.2)


@given(st.floats(0, 3), st.sampled_from([1, 2, 8, 64, 256]))
def test_nobody_is_busier_than_all(exponent, ranks):
    found = power_law_imbalance(exponent, DEEPSEEK, Parallel(expert=ranks))
    assert 1 <= found * (1 + 1e-12) <= ranks * (1 + 1e-9)
    assert found == power_law_imbalance(exponent, DEEPSEEK, Parallel(expert=ranks))


@given(
    exponent=st.floats(0, 3), per_token=st.integers(1, 16), held=st.sampled_from([1, 2, 4, 8]),
    ranks=st.sampled_from([2, 4, 16]),
)  # fmt: skip
def test_no_expert_has_more_than_all_tokens(exponent, per_token, held, ranks):
    """A token goes to one expert once: of a rank's experts to all of its own at most."""
    experts = Experts(held * ranks, min(per_token, held * ranks), 8)
    most = ranks * min(held, experts.per_token) / experts.per_token
    assert power_law_imbalance(exponent, experts, Parallel(expert=ranks)) <= most * (1 + 1e-9)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40), st.data())
def test_loads_that_can_be(loads, data):
    per_token = data.draw(st.integers(1, len(loads)))
    shares = _possible(loads, per_token)
    assert sum(shares) == pytest.approx(per_token)
    assert all(0 < share <= 1 for share in shares)
    below = [share / load for load, share in zip(loads, shares, strict=True) if share < 1 - 1e-9]
    assert not below or max(below) == pytest.approx(min(below))
    if max(loads) * per_token <= sum(loads):  # all could be as they are
        assert shares == pytest.approx([each * per_token / sum(loads) for each in loads])


def test_qwens_busiest_expert_has_all_tokens_and_no_more():
    assert power_law_imbalance(1.2, Experts(128, 8, 1536), Parallel(expert=128)) == pytest.approx(16)


def test_more_skew_more_ranks_and_fewer_copies_are_worse():
    by_exponent = [power_law_imbalance(exponent, DEEPSEEK, Parallel(expert=16)) for exponent in (0, 0.5, 1.01, 1.2)]
    by_ranks = [power_law_imbalance(1.2, DEEPSEEK, Parallel(expert=ranks)) for ranks in (1, 8, 64, 256)]
    by_copies = [power_law_imbalance(1.2, DEEPSEEK, Parallel(1, 32, copies)) for copies in (64, 32, 0)]
    for rising in (by_exponent, by_ranks, by_copies):
        assert rising == sorted(rising)
        assert rising[0] < 0.8 * rising[-1]


def test_nonsense_is_refused():
    with pytest.raises(InvalidRequestError, match="exponent of -1"):
        power_law_imbalance(-1, DEEPSEEK, Parallel(expert=8))
    with pytest.raises(InvalidRequestError, match="256 experts cannot be shared out among 72"):
        power_law_imbalance(1, DEEPSEEK, Parallel(expert=72))
