"""The sampler against an independent one, and what all rows of a batch have in common."""

import math
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.runtime import draw
from miniserve.runtime.logits import adjust
from miniserve.runtime.logprobs import token_logprobs
from miniserve.runtime.sampler import sample
from miniserve.runtime.uniform import uniform
from support.slow_sampler import INF, adjusted, choose, chosen, request

EXACT = settings(derandomize=True, deadline=None, max_examples=100)

PARAMS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 1e-300, 0.1, 0.7, 1.0, 1.3, 100.0]),
        "top_k": st.sampled_from([0, 0, 1, 2, 3, 7, 1000]),
        "top_p": st.sampled_from([1.0, 1.0, 1e-9, 0.1, 0.45, 0.9, 0.999]),
        "min_p": st.sampled_from([0.0, 0.0, 0.01, 0.3, 0.97]),
        "repetition_penalty": st.sampled_from([1.0, 1.0, 0.8, 1.7]),
        "presence_penalty": st.sampled_from([0.0, 0.0, -1.1, 1.3]),
        "frequency_penalty": st.sampled_from([0.0, 0.0, -0.4, 0.6]),
        "logit_bias": st.dictionaries(st.integers(0, 4), st.sampled_from([-100.0, -1.5, 2.5, 100.0]), max_size=2),
        "logprobs": st.sampled_from([None, 0, 3]),
        "min_tokens": st.integers(0, 4),
        "stop": st.sets(st.sampled_from([0, 1, 4, 999]), max_size=3),
        "prompt": st.lists(st.integers(0, 4), min_size=1, max_size=6),
        "output": st.lists(st.integers(0, 4), max_size=6),
        "seed": st.integers(0, 2**63 - 1),
    }
)
BATCHES = st.lists(PARAMS, min_size=1, max_size=6)


def batch(all_params, vocabulary, scale, grid, seed):
    """Requests, and logits for them, some of which are -inf; with `grid`, many are equal."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (len(all_params), vocabulary))
    logits = np.round(logits * 2 / scale) * scale / 2 if grid else logits
    logits[:, 1:][rng.random((len(all_params), vocabulary - 1)) < 0.1] = -INF
    requests = [request(name=f"r{row}", **params) for row, params in enumerate(all_params)]
    return torch.tensor(logits, dtype=torch.float32), requests


@EXACT
@given(
    all_params=BATCHES, vocabulary=st.sampled_from([5, 6, 17, 80]), scale=st.sampled_from([0.1, 3.0, 40.0]),
    grid=st.booleans(), seed=st.integers(0, 10**6), first_look=st.sampled_from([1, 3, 1024]),
)  # fmt: skip
def test_a_batch_equals_the_slow_sampler(all_params, vocabulary, scale, grid, seed, first_look):
    logits, requests = batch(all_params, vocabulary, scale, grid, seed)
    before = logits.clone()
    with mock.patch.object(draw, "FIRST_LOOK", first_look):
        got = sample(logits, requests)
    expected = [
        chosen(row, each, uniform(each.seed, len(each.output_token_ids)))
        for row, each in zip(logits.numpy(), requests, strict=True)
    ]
    assert [each.token for each in got] == expected
    assert [each.logprob is None for each in got] == [each.params.logprobs is None for each in requests]
    for got_row, row, each in zip(adjust(logits, requests).numpy(), logits.numpy(), requests, strict=True):
        assert np.array_equal(got_row, adjusted(row, each))
    assert torch.equal(logits, before)


@EXACT
@given(
    all_params=BATCHES, vocabulary=st.sampled_from([5, 40]), grid=st.booleans(), seed=st.integers(0, 10**6),
    shuffle=st.randoms(use_true_random=False),
)  # fmt: skip
def test_a_row_is_the_same_alone_and_in_any_company(all_params, vocabulary, grid, seed, shuffle):
    logits, requests = batch(all_params, vocabulary, 3.0, grid, seed)
    alone = [sample(logits[row : row + 1], [each])[0] for row, each in enumerate(requests)]
    order = list(range(len(requests)))
    shuffle.shuffle(order)
    together = sample(logits[order], [requests[row] for row in order])
    assert [each.token for each in together] == [alone[row].token for row in order]
    for got, row in zip(together, order, strict=True):
        if got.logprob is not None:
            assert got.logprob == alone[row].logprob


@pytest.mark.parametrize("bad", [[0.0, math.nan, 1.0], [0.0, INF, 1.0], [-INF, -INF, -INF]])
@pytest.mark.parametrize(
    "params", [{}, {"logprobs": 1}, {"presence_penalty": 1.0}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5}]
)
def test_unsound_logits_are_an_error_that_names_the_request(bad, params):
    rows = [[0.0, 1.0, 2.0], bad]
    with pytest.raises(RuntimeError, match="request broken: its logits"):
        choose(rows, request(name="sound", **params), request(name="broken", **params))
    with pytest.raises(RuntimeError, match="hold NaN or"):
        token_logprobs(torch.tensor(rows), [0, 0], 1)


def test_no_requests():
    assert sample(torch.zeros(0, 10), []) == []


def test_bfloat16_logits():
    logits = torch.tensor([[0.0, 3.0, 1.0]]).bfloat16()
    assert sample(logits, [request(temperature=1e-9, repetition_penalty=1.5)])[0].token == 1


def test_the_callers_logits_are_left_alone():
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    everything = {
        "repetition_penalty": 1.5, "presence_penalty": 1.0, "frequency_penalty": 1.0, "logit_bias": {3: 5.0},
        "top_k": 5, "top_p": 0.9, "min_p": 0.1, "min_tokens": 3, "stop": [1], "logprobs": 2, "output": [4, 4],
    }  # fmt: skip
    sample(logits, [request(temperature=t, **everything) for t in (0.0, 1.0, 2.0)])
    assert torch.equal(logits, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_draws_what_the_cpu_draws():
    every = [
        {}, {"temperature": 0.8}, {"temperature": 1.0, "top_p": 0.9}, {"temperature": 1.0, "top_k": 50},
        {"temperature": 1.0, "min_p": 0.02}, {"repetition_penalty": 1.3, "logit_bias": {5: 1.0}},
        {"temperature": 1.0, "presence_penalty": 1.0, "min_tokens": 5, "stop": [3]},
    ]  # fmt: skip
    requests = [request(seed=seed, output=[1, 2], logprobs=2, **params) for params in every for seed in range(20)]
    logits = torch.randn(len(requests), 50000, generator=torch.Generator().manual_seed(0)) * 2
    here, there = sample(logits, requests), sample(logits.cuda(), requests)
    assert [each.token for each in there] == [each.token for each in here]
    assert [each.logprob.rank for each in there] == [each.logprob.rank for each in here]
