"""The sampler: from a matrix of logits, one row a request, to one token a request.

Every row goes its own way (greedy or drawn, with its own temperature, top_k, top_p and min_p), and all rows go at once,
as tensor operations. Two invariants:

- What a row draws depends on its logits, its parameters, its seed and its number of tokens: not on the rows beside it,
  and not on anything kept from the step before. There is no generator whose state could get out of step.
- Tokens have one strict order, the likelier first and among equal logits the smaller id. Greedy, top_k, top_p and ranks
  all use it, so that equal logits (frequent where they were computed in bfloat16) never make two ways differ.

It needs float64, which PyTorch has on CPUs and CUDA GPUs.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from miniserve.core.request import TokenLogprob
from miniserve.core.sampling_params import SamplingParams
from miniserve.kernels import reference
from miniserve.runtime.ahead import Position
from miniserve.runtime.logits import adjust, is_adjusted
from miniserve.runtime.upload import upload

FIRST_LOOK = 1024  # likeliest tokens that usually hold top_p; sorting a whole vocabulary costs ten times as much


class Sampled(NamedTuple):
    """A request's next token, and its log-probability if the request asks for it."""

    token: int
    logprob: TokenLogprob | None


@torch.inference_mode()
def sample(
    logits: Tensor,
    requests: Sequence[Position],
    argmax: Callable[[Tensor], Tensor] = reference.argmax,
    known: Tensor | None = None,
) -> list[Sampled]:
    """Choose each request's next token, and wait for it.

    Args:
        logits: [R, V], on any device with float64; not changed.
        requests: R of them, row by row.
        argmax: the backend's.
        known: `likeliest` of the logits, if it has been computed with them.

    Raises:
        RuntimeError: a row holds NaN, +inf or nothing but -inf. The model is corrupt, or the engine has a bug.
    """
    logits = logits.float()
    tokens = checked(choose(logits, requests, argmax, known).tolist(), requests)
    sampled = [Sampled(token, None) for token in tokens]
    counts = {row: r.params.logprobs for row, r in enumerate(requests) if r.params.logprobs is not None}
    if counts:
        asked = list(counts)
        reports = token_logprobs(_rows(logits, asked), [sampled[row].token for row in asked], max(counts.values()))
        for row, report in zip(asked, reports, strict=True):
            sampled[row] = Sampled(report.token_id, report._replace(top=report.top[: counts[row]]))
    return sampled


@torch.inference_mode()
def choose(
    logits: Tensor,
    requests: Sequence[Position],
    argmax: Callable[[Tensor], Tensor] = reference.argmax,
    known: Tensor | None = None,
) -> Tensor:
    """The tokens alone, where the logits are: [R] int64, -1 where the logits are unsound. Arguments as for `sample`.

    The host does not wait for the device if `never_waits` is true of every request.
    """
    if not any(request.params.temperature > 0 or is_adjusted(request) for request in requests):
        return likeliest(logits, argmax) if known is None else known
    adjusted = adjust(logits, requests)
    tokens = argmax(adjusted)
    peaks = _peaks(adjusted, tokens)
    drawn = [row for row, request in enumerate(requests) if request.params.temperature > 0]
    if drawn:
        theirs = [requests[row] for row in drawn]
        chosen = _draw(_rows(adjusted, drawn), _rows(peaks, drawn), _rows(tokens, drawn), theirs)
        tokens[upload(drawn, logits.device)] = chosen
    return _sound(peaks, tokens)


def never_waits(request: Position) -> bool:
    """Whether its token is chosen without the host: greedily, or drawn by temperature and min_p alone.

    Penalties, `logit_bias` and `min_tokens` are the host's; top_k and top_p ask the device how far they have to look;
    log-probabilities are reported by token.
    """
    params = request.params
    cuts = params.temperature > 0 and (params.top_k > 0 or params.top_p < 1)
    return not cuts and params.logprobs is None and not is_adjusted(request)


@torch.inference_mode()
def token_logprobs(logits: Tensor, token_ids: Sequence[int], count: int) -> list[TokenLogprob]:
    """Log-probability and rank of given tokens, and the likeliest tokens beside each.

    Args:
        logits: [T, V], the model's own. Temporaries take about five times their memory: give long prompts in pieces.
        token_ids: T of them; token t is the one that follows, or was chosen from, row t.
        count: how many of the likeliest tokens to report.

    Raises:
        RuntimeError: a row holds NaN, +inf or nothing but -inf.
    """
    logits = logits.float()
    keys = _order(logits)
    tokens = torch.tensor(token_ids, device=logits.device)[:, None]
    ranks = (keys > keys.gather(-1, tokens)).sum(-1) + 1
    ids = torch.cat((tokens, keys.topk(min(count, keys.shape[-1])).indices), dim=-1)
    totals = logits.double().logsumexp(-1)
    values = logits.gather(-1, ids).double() - totals[:, None]
    reports = []
    columns = (each.tolist() for each in (totals, ranks, ids, values))
    for row, (total, rank, row_ids, row_values) in enumerate(zip(*columns, strict=True)):
        if not math.isfinite(total):
            raise RuntimeError(f"row {row}: the logits hold NaN or +inf, or are all -inf")
        top = tuple(zip(row_ids[1:], row_values[1:], strict=True))
        reports.append(TokenLogprob(row_ids[0], row_values[0], rank, top))
    return reports


def uniform(seed: int, index: int) -> float:
    """A request's random number for its output token `index`: in [0, 1), a multiple of 2^-53.

    A hash instead of a generator: the number can be had at any time, in any order, on any machine.
    """
    golden = 0x9E3779B97F4A7C15
    return (_mix(_mix(seed + golden) + (index + 1) * golden) >> 11) * 2.0**-53


def _mix(z: int) -> int:
    """Scatter 64 bits so that each bit of the result hangs on each of z.

    Source: SplitMix64, Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number Generators", with the constants
    of Stafford's variant 13.
    """
    z &= 2**64 - 1
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def likeliest(logits: Tensor, argmax: Callable[[Tensor], Tensor] = reference.argmax) -> Tensor:
    """[R, V] -> [R] int64: each row's likeliest token; -1 where the row holds NaN, +inf or nothing but -inf."""
    tokens = argmax(logits)
    return _sound(_peaks(logits, tokens), tokens)


def _peaks(logits: Tensor, tokens: Tensor) -> Tensor:
    """Each row's largest logit, [R]. `argmax` finds NaN if there is one: it counts as the largest."""
    return logits.gather(-1, tokens[:, None])[:, 0]


def _sound(peaks: Tensor, tokens: Tensor) -> Tensor:
    return torch.where(peaks.isfinite(), tokens, -1)


def _rows(matrix: Tensor, rows: list[int]) -> Tensor:
    """Those rows of it; no copy where it is all of them. `rows` ascend."""
    return matrix if len(rows) == len(matrix) else matrix[upload(rows, matrix.device)]


def checked(tokens: Sequence[int], requests: Sequence[Position]) -> Sequence[int]:
    """The tokens of `choose`, on the host.

    Raises:
        RuntimeError: see `sample`.
    """
    for token, request in zip(tokens, requests, strict=True):
        if token < 0:
            raise RuntimeError(f"request {request.request_id}: its logits hold NaN or +inf, or are all -inf")
    return tokens


def _draw(logits: Tensor, peaks: Tensor, likeliest: Tensor, requests: Sequence[Position]) -> Tensor:
    """A token for each row, from the softmax of logits / temperature without what top_k, top_p and min_p exclude.

    Args:
        logits: [R, V] float32.
        peaks, likeliest: [R], each row's largest logit and where it is.
        requests: R of them.

    Returns:
        [R] int64.
    """
    params = [request.params for request in requests]
    knobs = [(r.params.temperature, r.params.min_p, uniform(r.seed, r.num_output_tokens)) for r in requests]
    temperature, min_p, uniforms = upload(knobs, logits.device, torch.float64).T[..., None]
    # A weight is a probability before the division by the sum: the likeliest token's is 1. The peak goes first, so that
    # a tiny temperature tends to greedy. In place, as a CPU takes longer to get fresh memory than to do the arithmetic.
    weights = logits.double().sub_(peaks[:, None]).div_(temperature).exp_()
    _keep_likeliest(weights, logits, params)
    if any(each.min_p > 0 for each in params):
        weights.masked_fill_(weights < min_p, 0)
    # The first token at which the running sum exceeds u times the total. It has a weight, or the sum would not have
    # grown there; only a GPU, which adds each place up in an order of its own, may round a sum up where nothing came.
    running = weights.cumsum(-1)
    tokens = torch.searchsorted(running, uniforms * running[:, -1:], right=True).clamp_(max=logits.shape[-1] - 1)
    return torch.where(weights.gather(-1, tokens) > 0, tokens, likeliest[:, None])[:, 0]


def _keep_likeliest(weights: Tensor, logits: Tensor, params: Sequence[SamplingParams]) -> None:
    """Set to zero, in place, the weights of what top_k and top_p exclude. Rows that use neither cost nothing."""
    vocabulary = logits.shape[-1]
    limits = [(each.top_k if 0 < each.top_k < vocabulary else vocabulary, each.top_p) for each in params]
    rows = [row for row, limit in enumerate(limits) if limit != (vocabulary, 1)]
    if not rows:
        return
    top_k, top_p = zip(*(limits[row] for row in rows), strict=True)
    width = max(k if k < vocabulary else min(FIRST_LOOK, vocabulary) for k in top_k)
    keys, kept = _order(_rows(logits, rows)), _rows(weights, rows)
    k = torch.tensor(top_k, device=logits.device)[:, None]
    p = torch.tensor(top_p, dtype=torch.float64, device=logits.device)[:, None]
    kept.masked_fill_(keys < _last_kept(keys, kept, k, p, width), 0)
    if kept is not weights:
        weights[rows] = kept


def _last_kept(keys: Tensor, weights: Tensor, top_k: Tensor, top_p: Tensor, width: int) -> Tensor:
    """The key of the last token, in order, that top_k and then top_p keep. [R, 1].

    Args:
        keys: [R, V] from `_order`.
        weights: [R, V].
        top_k: [R, 1], V where off.
        top_p: [R, 1], 1 where off: the share of what top_k leaves.
        width: how many of the likeliest tokens to look at first; no less than any top_k that is on.
    """
    vocabulary = keys.shape[-1]
    best, ids = keys.topk(width)
    running = weights.gather(-1, ids).cumsum(-1)
    within_k = running.gather(-1, (top_k - 1).clamp(max=width - 1))
    mass = torch.where(top_k < vocabulary, within_k, weights.sum(-1, keepdim=True))
    crossing = (running < top_p * mass).sum(-1, keepdim=True) + 1
    count = crossing.minimum(top_k)
    last = best.gather(-1, (count - 1).clamp(max=width - 1))
    short = (count > width).nonzero()[:, 0]  # rows whose likeliest `width` tokens do not reach top_p
    if len(short):
        width = min(8 * width, vocabulary)
        last[short] = _last_kept(keys[short], weights[short], top_k[short], top_p[short], width)
    return last


def _order(logits: Tensor) -> Tensor:
    """Integers that compare as the logits do, and among equal ones as the ids do backwards: no two in a row are equal.

    The bits of a float32, read as an integer, ascend with it if it is positive and descend if it is negative. They
    become the upper half of 64 bits; the id is taken off below.
    """
    bits = (logits + 0.0).view(torch.int32)  # -0.0 + 0.0 is 0.0: the two are equal, their bits are not
    bits ^= (bits >> 31) & 0x7FFFFFFF
    return bits.long().mul_(2**32).sub_(torch.arange(logits.shape[-1], device=logits.device))
