"""Greedy generation for one sequence: the naive way, and with a KV cache.

The two functions differ in what they feed the decoder and must yield the same tokens: `generate_naive` recomputes the
whole sequence for each token (quadratic in its length), `generate_cached` computes each token once (linear). There is
no separate prefill or decode: the first call is given many tokens, the later ones one. Many sequences at once, and
every other way of choosing a token, are the engine's business.
"""

from collections.abc import Container, Iterator, Sequence

import torch
from torch import Tensor

from miniserve.model.cache import ContiguousCache, NoCache
from miniserve.model.decoder import Decoder


@torch.inference_mode()
def next_token_logits(decoder: Decoder, token_ids: Sequence[int], past: NoCache | ContiguousCache) -> Tensor:
    """Scores of the token that follows: one forward pass over `token_ids`, which come after what `past` holds. [V]."""
    tokens = torch.tensor(token_ids, device=decoder.device)
    positions = torch.arange(past.length, past.length + len(token_ids), device=decoder.device)
    hidden = decoder(tokens, positions, past)
    past.advance(len(token_ids))
    return decoder.logits(hidden[-1:])[0]


def greedy(logits: Tensor) -> int:
    """The most likely token."""
    return int(logits.argmax())


def generate_naive(
    decoder: Decoder,
    prompt_ids: Sequence[int],
    max_tokens: int,
    *,
    stop_ids: Container[int] = (),
) -> Iterator[int]:
    """Yield up to `max_tokens` new tokens, the last of which may be one of `stop_ids`. Recomputes everything."""
    sequence = list(prompt_ids)
    for _ in range(max_tokens):
        token = greedy(next_token_logits(decoder, sequence, NoCache(decoder.config)))
        yield token
        if token in stop_ids:
            return
        sequence.append(token)


def generate_cached(
    decoder: Decoder,
    prompt_ids: Sequence[int],
    max_tokens: int,
    *,
    stop_ids: Container[int] = (),
) -> Iterator[int]:
    """Yield the tokens that `generate_naive` yields, computing each token of the sequence once."""
    capacity = len(prompt_ids) + max_tokens
    cache = ContiguousCache(decoder.config, capacity, dtype=decoder.dtype, device=decoder.device)
    new = list(prompt_ids)
    for _ in range(max_tokens):
        token = greedy(next_token_logits(decoder, new, cache))
        yield token
        if token in stop_ids:
            return
        new = [token]
