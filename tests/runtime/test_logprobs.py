"""Log-probabilities and ranks, against log-softmax in float64."""

import numpy as np
import pytest
import torch

from miniserve.runtime.logprobs import token_logprobs
from miniserve.runtime.sampler import sample
from support.slow_sampler import INF, request


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
