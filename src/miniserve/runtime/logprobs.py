"""`token_logprobs`: what is told of a chosen token: its log-probability, its rank, and the likeliest beside it.

Of the model's own distribution, before temperature, penalties and grammars, in float64.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from miniserve.core.request import TokenLogprob
from miniserve.runtime.draw import order


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
    keys = order(logits)
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
