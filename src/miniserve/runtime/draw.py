"""Drawing a token for each row of logits: temperature, then what top_k, top_p and min_p leave, then one random number.

Two invariants:

- What a row draws depends on its logits, its parameters and its random number: not on the rows beside it.
- Tokens have one strict order, the likelier first and among equal logits the smaller id (`order`). top_k, top_p and
  ranks all use it, so that equal logits (frequent where they were computed in bfloat16) never make two ways differ.

It needs float64, which PyTorch has on CPUs and CUDA GPUs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from miniserve.core.sampling_params import SamplingParams
from miniserve.runtime.ahead import Position
from miniserve.runtime.uniform import uniform
from miniserve.runtime.upload import upload

FIRST_LOOK = 1024  # likeliest tokens that usually hold top_p; sorting a whole vocabulary costs ten times as much


def draw(logits: Tensor, peaks: Tensor, likeliest: Tensor, requests: Sequence[Position]) -> Tensor:
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
    keys, kept = order(rows_of(logits, rows)), rows_of(weights, rows)
    k = torch.tensor(top_k, device=logits.device)[:, None]
    p = torch.tensor(top_p, dtype=torch.float64, device=logits.device)[:, None]
    kept.masked_fill_(keys < _last_kept(keys, kept, k, p, width), 0)
    if kept is not weights:
        weights[rows] = kept


def _last_kept(keys: Tensor, weights: Tensor, top_k: Tensor, top_p: Tensor, width: int) -> Tensor:
    """The key of the last token, in order, that top_k and then top_p keep. [R, 1].

    Args:
        keys: [R, V] from `order`.
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


def order(logits: Tensor) -> Tensor:
    """Integers that compare as the logits do, and among equal ones as the ids do backwards: no two in a row are equal.

    The bits of a float32, read as an integer, ascend with it if it is positive and descend if it is negative. They
    become the upper half of 64 bits; the id is taken off below.
    """
    bits = (logits + 0.0).view(torch.int32)  # -0.0 + 0.0 is 0.0: the two are equal, their bits are not
    bits ^= (bits >> 31) & 0x7FFFFFFF
    return bits.long().mul_(2**32).sub_(torch.arange(logits.shape[-1], device=logits.device))


def rows_of(matrix: Tensor, rows: list[int]) -> Tensor:
    """Those rows of it; no copy where it is all of them. `rows` ascend."""
    return matrix if len(rows) == len(matrix) else matrix[upload(rows, matrix.device)]
