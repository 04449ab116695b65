"""What a worker says besides tokens, in Dynamo's form: how many there were, and how likely they are."""

from collections.abc import Sequence
from typing import Any

from miniserve.server.messages import Piece


def usage(prompt: Sequence[int], count: int, cached: int) -> dict[str, Any]:
    """Of a request that has ended.

    Args:
        prompt: its token ids.
        count: tokens of the output.
        cached: tokens of the prompt that were not computed.
    """
    return {
        "prompt_tokens": len(prompt),
        "completion_tokens": count,
        "total_tokens": len(prompt) + count,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def logprobs(piece: Piece) -> dict[str, Any]:
    """Fields of the piece's chunk; none if they were not asked for."""
    if piece.logprobs is None:
        return {}
    tops = [
        [{"rank": rank, "token_id": token, "logprob": logprob} for rank, (token, logprob) in enumerate(each.top, 1)]
        for each in piece.logprobs
    ]
    return {"log_probs": [each.logprob for each in piece.logprobs], "top_logprobs": tops}
