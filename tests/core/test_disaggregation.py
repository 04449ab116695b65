"""Which prompts are computed apart."""

import pytest

from miniserve.core.disaggregation import MIN_TOKENS, Disaggregation
from miniserve.core.sampling_params import SamplingParams
from miniserve.errors import InvalidRequestError

SOME = SamplingParams(max_tokens=20)


@pytest.mark.parametrize(
    ("num_tokens", "num_cached", "apart"),
    [(MIN_TOKENS, 0, True), (MIN_TOKENS - 1, 0, False), (1000, 1000 - MIN_TOKENS, True), (1000, 900, False)],
)
def test_what_would_hold_decodes_up_is_apart(num_tokens, num_cached, apart):
    assert Disaggregation().is_apart(num_tokens, num_cached, SOME) is apart


def test_what_needs_its_prompt_where_it_is_decoded_stays():
    rule = Disaggregation(0)
    assert rule.is_apart(1, 0, SOME)
    assert not rule.is_apart(1000, 0, SamplingParams(max_tokens=20, prompt_logprobs=0))
    assert not rule.is_apart(1000, 0, SamplingParams(max_tokens=1))
    assert rule.is_apart(1000, 0, SamplingParams())


def test_a_wholly_cached_prompt_stays():
    assert not Disaggregation(0).is_apart(64, 64, SOME)


def test_a_negative_bound_is_refused():
    with pytest.raises(InvalidRequestError, match="min_tokens is -1"):
        Disaggregation(-1)
