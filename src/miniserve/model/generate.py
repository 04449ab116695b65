"""Generation for one sequence: the naive way, and with a KV cache.

The two functions differ in what they feed the decoder and must yield the same tokens: `generate_naive` recomputes the
whole sequence for each token (quadratic in its length), `generate_cached` computes each token once (linear). There is
no separate prefill or decode: the first call is given many tokens, the later ones one.
"""

from collections.abc import Callable, Container, Iterator, Sequence

import torch
from torch import Tensor

from miniserve.errors import InvalidRequestError
from miniserve.model.cache import ContiguousCache, NoCache
from miniserve.model.decoder import Decoder

Sampler = Callable[[Tensor], int]


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
    sample: Sampler = greedy,
) -> Iterator[int]:
    """Yield up to `max_tokens` new tokens, the last of which may be one of `stop_ids`. Recomputes everything."""
    sequence = list(prompt_ids)
    for _ in range(max_tokens):
        token = sample(next_token_logits(decoder, sequence, NoCache()))
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
    sample: Sampler = greedy,
) -> Iterator[int]:
    """Yield the tokens that `generate_naive` yields, computing each token of the sequence once."""
    capacity = len(prompt_ids) + max_tokens
    cache = ContiguousCache(decoder.config, capacity, dtype=decoder.dtype, device=decoder.device)
    new = list(prompt_ids)
    for _ in range(max_tokens):
        token = sample(next_token_logits(decoder, new, cache))
        yield token
        if token in stop_ids:
            return
        new = [token]


def make_sampler(temperature: float, seed: int | None = None) -> Sampler:
    """Greedy at temperature 0, otherwise a draw from softmax(logits / temperature).

    Args:
        temperature: 0 to 100; higher is more random.
        seed: 0 to 2^63 - 1; the same seed draws the same tokens from the same logits. None: a fresh one.

    Raises:
        InvalidRequestError: out of range.
    """
    if not 0 <= temperature <= 100:
        raise InvalidRequestError(f"temperature is {temperature}: it must lie between 0 and 100")
    if seed is not None and not 0 <= seed < 2**63:
        raise InvalidRequestError(f"seed is {seed}: it must lie between 0 and 2^63 - 1")
    if temperature == 0:
        return greedy
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)

    def draw(logits: Tensor) -> int:
        # Drawn on the CPU, so that a seed means the same on every device; float64 because a cumulative sum over a
        # large vocabulary in float32 loses the tail. The largest logit is taken off before the division, so that a
        # temperature near zero tends to greedy instead of overflowing.
        wide = logits.double().cpu()
        return int(torch.multinomial(((wide - wide.max()) / temperature).softmax(-1), 1, generator=generator))

    return draw
