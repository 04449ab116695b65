"""An independent sampler: float64 numpy, a row at a time, every step spelled out; and requests for any sampler."""

import math

import numpy as np
import torch

from miniserve.core.request import Request
from miniserve.core.sampling_params import Limits, SamplingParams
from miniserve.runtime.sampler import sample

INF = math.inf


def request(prompt=(0,), output=(), seed=0, name="r", min_tokens=0, stop=(), **params):
    made = Request(name, list(prompt), Limits(100, min_tokens, frozenset(stop)), SamplingParams(**params), seed)
    made.token_ids += output
    return made


def choose(logits, *requests):
    """The tokens of a batch. `logits`: rows, or one row for all."""
    matrix = torch.tensor(logits, dtype=torch.float32)
    return [each.token for each in sample(matrix.expand(len(requests), matrix.shape[-1]), requests)]


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


def chi_square(counts, probabilities):
    """Whether counts fit, at a level where a sound sampler fails once in a million times (Wilson and Hilferty 1931)."""
    expected = np.asarray(probabilities) * sum(counts)
    assert not np.asarray(counts)[expected == 0].any()
    free = (expected > 0).sum() - 1
    statistic = ((np.asarray(counts) - expected)[expected > 0] ** 2 / expected[expected > 0]).sum()
    return statistic < free * (1 - 2 / (9 * free) + 4.75 * math.sqrt(2 / (9 * free))) ** 3
