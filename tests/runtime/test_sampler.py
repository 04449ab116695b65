"""The sampler against an independent one: float64 numpy, a row at a time, every step spelled out."""

import math
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.core.request import Request
from miniserve.core.sampling_params import Limits, SamplingParams
from miniserve.runtime import sampler
from miniserve.runtime.logits import adjust
from miniserve.runtime.sampler import sample, token_logprobs, uniform

EXACT = settings(derandomize=True, deadline=None, max_examples=100)
INF = math.inf
LAST_U = 1 - 2.0**-53  # the largest number `uniform` can return


def request(prompt=(0,), output=(), seed=0, name="r", min_tokens=0, stop=(), **params):
    made = Request(name, list(prompt), Limits(100, min_tokens, frozenset(stop)), SamplingParams(**params), seed)
    made.token_ids += output
    return made


def choose(logits, *requests):
    """The tokens of a batch. `logits`: rows, or one row for all."""
    matrix = torch.tensor(logits, dtype=torch.float32)
    return [each.token for each in sample(matrix.expand(len(requests), matrix.shape[-1]), requests)]


@contextmanager
def numbers(value):
    """Every draw uses this number."""
    with mock.patch.object(sampler, "uniform", return_value=value):
        yield


def support(logits, **params):
    """Every token that can be drawn, found by drawing at 200 evenly spaced numbers."""
    with mock.patch.object(sampler, "uniform", lambda seed, index: (seed + 0.5) / 200):
        return set(choose(logits, *(request(seed=seed, **{"temperature": 1.0} | params) for seed in range(200))))


def log(*probabilities):
    return [math.log(p) if p else -INF for p in probabilities]


# --- an independent sampler


def adjusted(row, request):
    """The row after bias, penalties and min_tokens; as the sampler does, it stores float32 after each."""
    params, row = request.params, np.array(row, np.float32)
    for token, bias in params.logit_bias.items():
        row[token] += np.float32(bias)
    output = request.token_ids[request.num_prompt_tokens :]
    for token in set(request.token_ids):
        value = float(row[token])
        value = value / params.repetition_penalty if value > 0 else value * params.repetition_penalty
        value -= params.presence_penalty * (token in output) + params.frequency_penalty * output.count(token)
        row[token] = value
    banned = row.copy()
    if len(output) < request.limits.min_tokens:
        banned[[token for token in request.limits.stop_token_ids if token < len(row)]] = -INF
    return row if banned.max() == -INF else banned


def distribution(row, params):
    """The probability of each token; `row` is adjusted."""
    if params.temperature == 0:
        return np.eye(len(row))[np.argmax(row)]
    with np.errstate(over="ignore"):
        weights = np.exp((row.astype(np.float64) - float(row.max())) / params.temperature)
    order = np.argsort(-row, kind="stable")
    kept = order[: params.top_k] if params.top_k else order
    if params.top_p < 1:
        shares = np.cumsum(weights[kept]) / weights[kept].sum()
        kept = [token for token, before in zip(kept, [0.0, *shares[:-1]], strict=True) if before < params.top_p]
    kept = [token for token in kept if weights[token] >= params.min_p * weights.max()]
    out = np.zeros(len(row))
    out[kept] = weights[kept] / weights[kept].sum()
    return out


def chosen(row, request, u):
    """The first token at which the probabilities so far exceed u."""
    shares = distribution(adjusted(row, request), request.params)
    reached = (np.cumsum(shares) > u) & (shares > 0)
    assert reached.any()
    return int(reached.argmax())


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
    with mock.patch.object(sampler, "FIRST_LOOK", first_look):
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


# --- rules, one at a time


def test_the_token_that_crosses_top_p_is_kept():
    logits = log(0.1, 0.5, 0.15, 0.25)
    assert support(logits, top_p=0.49) == {1}
    assert support(logits, top_p=0.51) == {1, 3}
    assert support(logits, top_p=0.74) == {1, 3}
    assert support(logits, top_p=0.76) == {1, 2, 3}
    assert support(logits, top_p=0.95) == support(logits) == {0, 1, 2, 3}
    assert support(logits, top_p=1e-300) == {1}


def test_top_p_stops_where_it_is_reached_exactly():
    assert support([0.0] * 4, top_p=0.5) == {0, 1}
    assert support([0.0] * 4, top_p=0.75) == {0, 1, 2}


def test_top_p_is_of_what_top_k_leaves():
    # Of the two likeliest, 0.5 and 0.25, the first has two thirds.
    assert support(log(0.1, 0.5, 0.15, 0.25), top_k=2, top_p=0.66) == {1}
    assert support(log(0.1, 0.5, 0.15, 0.25), top_k=2, top_p=0.67) == {1, 3}


def test_temperature_comes_before_the_filters():
    logits = log(0.1, 0.5, 0.15, 0.25)
    # Squared and renormalised: 0.03, 0.72, 0.07, 0.18. Square roots: 0.17, 0.37, 0.20, 0.26.
    assert support(logits, temperature=0.5, top_p=0.7) == {1}
    assert support(logits, temperature=2.0, top_p=0.7) == {1, 2, 3}
    assert support(logits, temperature=0.5, min_p=0.3) == {1}
    assert support(logits, temperature=1.0, min_p=0.25) == {1, 2, 3}
    assert support(logits, temperature=2.0, min_p=0.4) == {0, 1, 2, 3}


def test_top_k_zero_and_a_large_one_are_off():
    logits = log(0.1, 0.5, 0.15, 0.25)
    for off in (0, 4, 5, 10**30):
        assert support(logits, top_k=off) == {0, 1, 2, 3}
    assert support(logits, top_k=3) == {1, 2, 3}
    assert support(logits, top_k=1) == {1}


def test_min_p_is_a_share_of_the_likeliest():
    logits = log(0.1, 0.5, 0.15, 0.25)
    assert support(logits, min_p=0.19) == {0, 1, 2, 3}
    assert support(logits, min_p=0.21) == {1, 2, 3}
    assert support(logits, min_p=0.31) == {1, 3}
    assert support(logits, min_p=1.0) == {1}
    assert support([0.0, -1.0, 0.0], min_p=1.0) == {0, 2}


def test_equal_logits_are_kept_from_the_smallest_id_on():
    """As greedy takes the first of equals; so top_k=1 is greedy, and the count is exact."""
    logits = [1.0, 2.0, 2.0, -0.0, 2.0, 0.0]
    assert choose(logits, request()) == [1]
    for count, kept in enumerate(([1], [1, 2], [1, 2, 4], [0, 1, 2, 4], [0, 1, 2, 3, 4]), start=1):
        assert support(logits, top_k=count) == set(kept)


@pytest.mark.parametrize("width", [50, 5000, 20000])
def test_top_p_over_a_wide_vocabulary(width):
    """A nucleus that the first look holds, one that the second holds, and one that only a full sort finds."""
    logits = np.full(20000, -INF, np.float32)
    members = np.random.default_rng(0).permutation(20000)[:width]
    logits[members] = np.linspace(0, 1, width, dtype=np.float32)
    requests = [request(temperature=1.0, top_p=0.9, seed=seed) for seed in range(12)]
    requests[7:7] = [request(temperature=1.0, top_k=3), request()]  # mates that look at fewer
    with numbers(LAST_U):
        assert choose(logits, requests[0])[0] == np.flatnonzero(distribution(logits, requests[0].params))[-1]
    assert choose(logits, *requests) == [chosen(logits, each, uniform(each.seed, 0)) for each in requests]


@pytest.mark.parametrize("params", [{}, {"top_k": 3}, {"top_p": 0.8}, {"min_p": 0.1}, {"temperature": 1e-300}])
def test_a_token_without_probability_is_never_drawn(params):
    logits = [-INF, -900.0, -INF, 1.0, -INF, 2.0, 3.0, -INF, -900.0, -INF]
    for u in (0.0, 5e-324, 2.0**-53, 0.5, LAST_U):
        with numbers(u):
            token = choose(logits, request(**{"temperature": 1.0} | params))
        assert token[0] in {3, 5, 6}
    with numbers(0.0):
        assert choose(logits, request(temperature=1.0)) == [3]
    with numbers(LAST_U):
        assert choose(logits, request(temperature=1.0)) == [6]


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-30])
def test_a_tiny_temperature_is_greedy(temperature):
    logits = np.random.default_rng(0).normal(0, 5, (30, 100)).round(3)
    logits[:, 50] = -INF
    rows = range(len(logits))
    cold = choose(logits, *(request(temperature=temperature, seed=row) for row in rows))
    assert cold == choose(logits, *(request() for _ in rows)) == logits.argmax(-1).tolist()


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


# --- what a request changes


def test_penalties_by_hand():
    asked = request(
        prompt=[0, 1], output=[2, 3, 3], repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25
    )
    got = adjust(torch.tensor([[4.0, -4.0, 4.0, -4.0, 4.0, -4.0]]), [asked])
    # 0 and 1 are the prompt's: halved, doubled. 2 came once: 4/2 - 0.5 - 0.25. 3 came twice: -4·2 - 0.5 - 0.5.
    assert got.tolist() == [[2.0, -8.0, 1.25, -9.0, 4.0, -4.0]]


def test_presence_and_frequency_leave_the_prompt_alone():
    logits = torch.tensor([[1.0, 1.0]])
    for asked in (request(prompt=[0, 0], presence_penalty=2.0), request(prompt=[0, 0], frequency_penalty=2.0)):
        assert adjust(logits, [asked]).tolist() == [[1.0, 1.0]]
        asked.token_ids += [1]
        assert adjust(logits, [asked]).tolist() == [[1.0, -1.0]]


def test_bias_comes_before_the_penalties():
    asked = request(prompt=[0], repetition_penalty=2.0, logit_bias={0: 2.0})
    assert adjust(torch.tensor([[-1.0, 0.0]]), [asked]).tolist() == [[0.5, 0.0]]


def test_a_vanishing_penalty_stays_finite():
    assert choose([1.0, 2.0], request(prompt=[0], repetition_penalty=1e-300)) == [0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_bias_of_a_hundred_forces_and_forbids(temperature):
    logits = [1.0, 5.0, 2.0, 4.0]
    many = range(50)
    force = choose(logits, *(request(temperature=temperature, seed=s, logit_bias={2: 100}) for s in many))
    assert set(force) == {2}
    forbid = choose(logits, *(request(temperature=temperature, seed=s, logit_bias={1: -100, 3: -100.0}) for s in many))
    assert set(forbid) <= {0, 2}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_min_tokens_forbids_stopping_until_they_have_come(temperature):
    logits = [1.0, 50.0, 40.0, 0.0]
    asked = {"temperature": temperature, "min_tokens": 2, "stop": [1, 2, 77]}
    early = choose(logits, request(**asked), request(output=[0], **asked))
    assert set(early) <= {0, 3}
    assert choose(logits, request(output=[0, 0], **asked)) == [1]


def test_min_tokens_does_not_forbid_everything():
    stuck = request(min_tokens=2, stop=[1, 2])
    free = request(min_tokens=2, stop=[2])
    assert choose([[-INF, 1.0, 2.0], [-INF, 1.0, 2.0]], stuck, free) == [2, 1]


def test_nobody_asks_nothing_is_copied():
    logits = torch.zeros(2, 3)
    assert adjust(logits, [request(), request(min_tokens=5)]) is logits  # no stop token: nothing to forbid


def test_the_callers_logits_are_left_alone():
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    everything = {
        "repetition_penalty": 1.5, "presence_penalty": 1.0, "frequency_penalty": 1.0, "logit_bias": {3: 5.0},
        "top_k": 5, "top_p": 0.9, "min_p": 0.1, "min_tokens": 3, "stop": [1], "logprobs": 2, "output": [4, 4],
    }  # fmt: skip
    sample(logits, [request(temperature=t, **everything) for t in (0.0, 1.0, 2.0)])
    assert torch.equal(logits, before)


# --- log-probabilities


def log_softmax(row):
    wide = np.asarray(row, np.float64)
    return wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())


def test_logprobs_are_of_the_unmodified_logits():
    rows = np.random.default_rng(1).normal(0, 3, (4, 50)).astype(np.float32)
    requests = [
        request(logprobs=3, logit_bias={7: 100.0}),
        request(),
        request(logprobs=0, temperature=2.0, seed=3),
        request(logprobs=20, temperature=0.3, top_k=5, seed=4),
    ]
    got = sample(torch.tensor(rows), requests)
    assert got[0].token == 7
    assert got[1].logprob is None
    for row in (0, 2, 3):
        token, logprob = got[row]
        exact, order = log_softmax(rows[row]), np.argsort(-rows[row], kind="stable")
        assert logprob.token_id == token
        assert logprob.logprob == pytest.approx(exact[token], abs=1e-6)
        assert logprob.rank == 1 + order.tolist().index(token)
        best = order[: requests[row].params.logprobs].tolist()
        assert [each for each, _ in logprob.top] == best
        assert [value for _, value in logprob.top] == pytest.approx(exact[best], abs=1e-6)


def test_logprobs_of_given_tokens():
    rows = np.random.default_rng(2).normal(0, 10, (6, 9)).astype(np.float32)
    rows[2, 4] = -INF
    tokens = [8, 0, 4, 2, 2, 5]
    for count in (0, 2, 20):
        reports = token_logprobs(torch.tensor(rows), tokens, count)
        for row, token, report in zip(rows, tokens, reports, strict=True):
            exact, order = log_softmax(row), np.argsort(-row, kind="stable")[:count]
            assert (report.token_id, report.rank) == (token, 1 + (row > row[token]).sum())
            assert report.logprob == pytest.approx(exact[token], abs=1e-6)
            assert [each for each, _ in report.top] == order.tolist()
            assert [value for _, value in report.top] == pytest.approx(exact[order], abs=1e-6)


def test_ranks_and_best_tokens_agree_where_logits_are_equal():
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0, -0.0, 2.0]])
    for token, rank in ((1, 1), (2, 2), (5, 3), (0, 4), (3, 5), (4, 6)):
        (report,) = token_logprobs(logits, [token], 6)
        assert report.rank == rank
        assert report.top[rank - 1] == (token, report.logprob)


# --- randomness


def chi_square(counts, probabilities):
    """Whether counts fit, at a level where a sound sampler fails once in a million times (Wilson and Hilferty 1931)."""
    expected = np.asarray(probabilities) * sum(counts)
    assert not np.asarray(counts)[expected == 0].any()
    free = (expected > 0).sum() - 1
    statistic = ((np.asarray(counts) - expected)[expected > 0] ** 2 / expected[expected > 0]).sum()
    return statistic < free * (1 - 2 / (9 * free) + 4.75 * math.sqrt(2 / (9 * free))) ** 3


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"temperature": 1.0, "top_k": 4},
        {"temperature": 1.5, "top_p": 0.8},
        {"temperature": 1.5, "min_p": 0.1},
        {"temperature": 1.2, "top_k": 6, "top_p": 0.95, "min_p": 0.05, "logit_bias": {2: 0.7}},
    ],
)
def test_draws_have_the_right_shares(params):
    logits = np.array([0.0, 1.0, -1.0, 2.0, 0.5, -2.0, 1.5, 0.2], np.float32)
    requests = [request(output=[0] * index, seed=seed, **params) for seed in range(250) for index in range(20)]
    counts = np.bincount(choose(logits, *requests), minlength=8)
    assert chi_square(counts, distribution(adjusted(logits, requests[0]), requests[0].params))


def test_numbers_are_even_along_seeds_and_positions_and_for_neighbours():
    along = {
        "seeds": [(uniform(seed, 0), uniform(seed + 1, 0)) for seed in range(20000)],
        "positions": [(uniform(5, index), uniform(5, index + 1)) for index in range(20000)],
        "the diagonal": [(uniform(at, at), uniform(at + 1, at)) for at in range(20000)],
        "choices": [(uniform(SamplingParams(seed=seed).seed_of(0), 0), uniform(SamplingParams(seed=seed).seed_of(1), 0)) for seed in range(5000)],
    }  # fmt: skip
    for name, pairs in along.items():
        cells = [int(first * 8) * 8 + int(second * 8) for first, second in pairs]
        assert chi_square(np.bincount(cells, minlength=64), [1 / 64] * 64), name
        assert all(0 <= number < 1 for pair in pairs for number in pair)


def test_the_hash_is_splitmix64():
    """The first numbers of its stream from seed 1234567, as published with other implementations of it."""
    golden = 0x9E3779B97F4A7C15
    stream = [sampler._mix(1234567 + step * golden) for step in (1, 2, 3)]
    assert stream == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_numbers_stay_what_they_are():
    """A seed that someone wrote down means the same tomorrow."""
    assert [uniform(*at) for at in ((0, 0), (0, 1), (1, 0), (2**63 - 1, 1000))] == [
        0.6524484863740322, 0.7012121095215252, 0.36818951565166946, 0.260144116597694,
    ]  # fmt: skip


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
