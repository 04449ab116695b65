"""Every parameter out of range is refused by name; what is made is immutable and travels between processes."""

import dataclasses
import math
import pickle

import pytest

from miniserve.core.sampling_params import Limits, SamplingParams
from miniserve.errors import InvalidRequestError


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("max_tokens", 0, "max_tokens is 0: it must be a whole number of at least 1"),
        ("max_tokens", 1.5, "max_tokens is 1.5"),
        ("max_tokens", True, "max_tokens is True"),
        ("min_tokens", -1, "min_tokens is -1"),
        ("temperature", -0.1, "temperature is -0.1: it must lie between 0 and 100"),
        ("temperature", math.nan, "temperature is nan"),
        ("temperature", math.inf, "temperature is inf"),
        ("temperature", "hot", "temperature is 'hot'"),
        ("top_k", -1, "top_k is -1"),
        ("top_k", 2.0, "top_k is 2.0"),
        ("top_p", 0, "top_p is 0: it must be above 0"),
        ("top_p", 1.01, "top_p is 1.01"),
        ("min_p", -0.5, "min_p is -0.5"),
        ("repetition_penalty", 0, "repetition_penalty is 0"),
        ("presence_penalty", 2.1, "presence_penalty is 2.1: it must lie between -2 and 2"),
        ("frequency_penalty", -3, "frequency_penalty is -3"),
        ("logit_bias", {1: 101}, r"logit_bias\[1\] is 101"),
        ("logit_bias", {-1: 0}, "a token id of logit_bias is -1"),
        ("logit_bias", {"5": 1}, "a token id of logit_bias is '5'"),
        ("logit_bias", dict.fromkeys(range(1025), 1), "names 1025 tokens: at most 1024"),
        ("seed", -1, "seed is -1"),
        ("seed", 2**63, "seed is 9223372036854775808"),
        ("n", 0, "n is 0"),
        ("n", 129, "n is 129: it must be a whole number between 1 and 128"),
        ("stop", ("a", ""), "every stop string needs at least one character"),
        ("stop", (3,), "stop holds 3"),
        ("stop", tuple("abcdefghijklmnopq"), "stop has 17 strings: at most 16"),
        ("stop", "x" * 1001, "1001 characters: at most 1000"),
        ("stop_token_ids", (-2,), "a stop_token_id is -2"),
        ("logprobs", 21, "logprobs is 21: it must be a whole number between 0 and 20"),
        ("prompt_logprobs", -1, "prompt_logprobs is -1"),
    ],
)
def test_out_of_range_is_refused_by_name(field, value, says):
    with pytest.raises(InvalidRequestError, match=says):
        SamplingParams(**{field: value})


def test_min_tokens_may_not_exceed_max_tokens():
    with pytest.raises(InvalidRequestError, match=r"min_tokens \(5\) exceeds max_tokens \(4\)"):
        SamplingParams(min_tokens=5, max_tokens=4)
    with pytest.raises(InvalidRequestError, match=r"min_tokens is 5: .*max_tokens \(3\)"):
        SamplingParams(min_tokens=5).limits(3, ())


def test_the_edges_are_allowed():
    SamplingParams(temperature=100, top_p=1, min_p=1, seed=2**63 - 1, n=128, logprobs=20, prompt_logprobs=0, top_k=0)
    SamplingParams(temperature=0, presence_penalty=-2, frequency_penalty=2, logit_bias={0: -100, 1: 100}, max_tokens=1)


def test_a_single_stop_string_is_one_and_lists_become_immutable():
    params = SamplingParams(stop="ab", stop_token_ids=[1, 2], logit_bias={3: 1.0})
    assert (params.stop, params.stop_token_ids) == (("ab",), (1, 2))
    with pytest.raises(TypeError):
        params.logit_bias[4] = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.n = 2


def test_survives_a_pickle():
    params = SamplingParams(stop=["a"], logit_bias={3: 1.0}, seed=5, temperature=0.5)
    again = pickle.loads(pickle.dumps(params))
    assert again == params
    assert dict(again.logit_bias) == {3: 1.0}


def test_token_ids_are_checked_against_the_vocabulary():
    SamplingParams(stop_token_ids=[9], logit_bias={9: 1}).check_vocabulary(10)
    with pytest.raises(InvalidRequestError, match="stop_token_ids names token 10; the vocabulary has 10"):
        SamplingParams(stop_token_ids=[10]).check_vocabulary(10)
    with pytest.raises(InvalidRequestError, match="logit_bias names token 10"):
        SamplingParams(logit_bias={10: 1}).check_vocabulary(10)


def test_limits_join_eos_and_the_callers_stop_tokens():
    params = SamplingParams(stop_token_ids=[7])
    assert params.limits(30, [2, 3]) == Limits(30, 0, frozenset({2, 3, 7}))
    assert SamplingParams(ignore_eos=True, max_tokens=4, stop_token_ids=[7]).limits(30, [2]) == Limits(
        4, 0, frozenset({7})
    )


def test_seeds_of_the_outputs_differ_and_repeat():
    params = SamplingParams(seed=11)
    assert params.seed_of(0) == 11
    seeds = [params.seed_of(choice) for choice in range(100)]
    assert len(set(seeds)) == 100
    assert seeds == [SamplingParams(seed=11).seed_of(choice) for choice in range(100)]
    assert len({SamplingParams().seed_of(0) for _ in range(8)}) == 8
