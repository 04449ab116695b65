"""What a request changes in its logits before a token is chosen: `logit_bias`, penalties, grammar, `min_tokens`.

All but the grammar touch a few entries of a [R, V] matrix; each first lists them (row, token, how) for all requests and
then changes them at once. The caller's logits are left as they are: log-probabilities are reported from those.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from miniserve.runtime.ahead import Position
from miniserve.runtime.upload import upload


def is_adjusted(request: Position) -> bool:
    """Whether `adjust` has anything to do for its next token."""
    params = request.params
    return bool(params.logit_bias) or _is_penalized(request) or _may_not_stop(request) or params.grammar is not None


def adjust(logits: Tensor, requests: Sequence[Position]) -> Tensor:
    """The logits that tokens are chosen by.

    Args:
        logits: [R, V] float32, not changed.
        requests: R of them.

    Returns:
        [R, V]: `logits` itself where no request asks for a change.
    """
    if not any(map(is_adjusted, requests)):
        return logits
    logits = logits.clone()
    _add_bias(logits, requests)
    _penalize(logits, requests)
    _follow_grammars(logits, requests)
    _forbid_stopping(logits, requests)
    return logits


def _is_penalized(request: Position) -> bool:
    params = request.params
    return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0


def _may_not_stop(request: Position) -> bool:
    limits = request.limits
    return request.num_output_tokens < limits.min_tokens and bool(limits.stop_token_ids)


def _add_bias(logits: Tensor, requests: Sequence[Position]) -> None:
    biases = [request.params.logit_bias for request in requests]
    rows = [row for row, bias in enumerate(biases) for _ in bias]
    if rows:
        tokens = [token for bias in biases for token in bias]
        added = [value for bias in biases for value in bias.values()]
        logits[rows, tokens] += torch.tensor(added, dtype=logits.dtype, device=logits.device)


def _penalize(logits: Tensor, requests: Sequence[Position]) -> None:
    """Repetition for tokens of prompt and output; presence and frequency for the output's alone."""
    rows, tokens, factors, taken = [], [], [], []
    for row, request in enumerate(requests):
        if _is_penalized(request):
            # Linear in the request's length, but in C; and there is no state to keep right through preemption or abort.
            occurs = dict.fromkeys(request.token_ids, 0)
            occurs.update(Counter(request.output_token_ids))
            times, params = np.fromiter(occurs.values(), np.float64), request.params
            rows.append(np.full(len(occurs), row))
            tokens.append(np.fromiter(occurs, np.int64))
            factors.append(np.full(len(occurs), params.repetition_penalty, np.float64))
            taken.append(params.presence_penalty * (times > 0) + params.frequency_penalty * times)
    if not rows:
        return
    at = torch.from_numpy(np.concatenate(rows)), torch.from_numpy(np.concatenate(tokens))
    factor, less = (torch.from_numpy(np.concatenate(each)).to(logits.device) for each in (factors, taken))
    values = logits[at].double()
    values = torch.where(values > 0, values / factor, values * factor) - less
    # A penalty far below 1 means "surely this one": the largest number there is, not infinity, which has no softmax.
    logits[at] = values.clamp(max=torch.finfo(logits.dtype).max).to(logits.dtype)


def _follow_grammars(logits: Tensor, requests: Sequence[Position]) -> None:
    masks = {row: mask for row, request in enumerate(requests) if (mask := request.allowed()) is not None}
    if masks and logits.device.type == "cpu":
        matrix = logits.numpy()
        for row, mask in masks.items():  # one by one, while it is in the cache; masked_fill_ takes five times as long
            np.copyto(matrix[row], -np.inf, where=_banned(mask, logits.shape[-1]))
    elif masks:
        banned = np.stack([_banned(mask, logits.shape[-1]) for mask in masks.values()])
        rows = upload(list(masks), logits.device)
        logits[rows] = logits[rows].masked_fill(upload(banned, logits.device), -torch.inf)


def _banned(mask: bytes, vocab_size: int) -> "np.ndarray":
    """What a mask of bits leaves out, [V] bool."""
    return np.unpackbits(~np.frombuffer(mask, np.uint8), count=vocab_size, bitorder="little").view(np.bool_)


def _forbid_stopping(logits: Tensor, requests: Sequence[Position]) -> None:
    banned = [(row, r.limits.stop_token_ids) for row, r in enumerate(requests) if _may_not_stop(r)]
    entries = [(row, token) for row, tokens in banned for token in tokens if token < logits.shape[-1]]
    if entries:
        rows, tokens = torch.tensor(entries).T
        before = logits[rows, tokens]
        logits[rows, tokens] = -torch.inf
        # Where no other token is possible, stopping early is the lesser evil.
        nothing_left = logits.amax(-1).isneginf()[rows]
        logits[rows, tokens] = torch.where(nothing_left, before, -torch.inf)
