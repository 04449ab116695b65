"""The sampler: from a matrix of logits, one row a request, to one token a request.

Every row goes its own way (greedy, or drawn with its own temperature, top_k, top_p and min_p: see `draw`), and all rows
go at once, as tensor operations. What a row chooses depends on its logits, its parameters, its seed and its number of
tokens: not on the rows beside it, and not on anything kept from the step before. Of equal logits greedy takes the
smaller id, which is where drawing has its order from.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from miniserve.core.request import TokenLogprob
from miniserve.kernels import reference
from miniserve.runtime.ahead import Position
from miniserve.runtime.draw import draw, rows_of
from miniserve.runtime.logits import adjust, is_adjusted
from miniserve.runtime.logprobs import token_logprobs
from miniserve.runtime.upload import upload


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
        reports = token_logprobs(rows_of(logits, asked), [sampled[row].token for row in asked], max(counts.values()))
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
        chosen = draw(rows_of(adjusted, drawn), rows_of(peaks, drawn), rows_of(tokens, drawn), theirs)
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


def likeliest(logits: Tensor, argmax: Callable[[Tensor], Tensor] = reference.argmax) -> Tensor:
    """[R, V] -> [R] int64: each row's likeliest token; -1 where the row holds NaN, +inf or nothing but -inf."""
    tokens = argmax(logits)
    return _sound(_peaks(logits, tokens), tokens)


def _peaks(logits: Tensor, tokens: Tensor) -> Tensor:
    """Each row's largest logit, [R]. `argmax` finds NaN if there is one: it counts as the largest."""
    return logits.gather(-1, tokens[:, None])[:, 0]


def _sound(peaks: Tensor, tokens: Tensor) -> Tensor:
    return torch.where(peaks.isfinite(), tokens, -1)


def checked(tokens: Sequence[int], requests: Sequence[Position]) -> Sequence[int]:
    """The tokens of `choose`, on the host.

    Raises:
        RuntimeError: see `sample`.
    """
    for token, request in zip(tokens, requests, strict=True):
        if token < 0:
            raise RuntimeError(f"request {request.request_id}: its logits hold NaN or +inf, or are all -inf")
    return tokens
