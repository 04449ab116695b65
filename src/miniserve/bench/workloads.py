"""The prompts that benchmarks run on: fixed by a seed, of random token ids, so that nothing but lengths and shared
prefixes matters. A model says something else about them than about text; it takes the same time."""

import random
from typing import NamedTuple


class Job(NamedTuple):
    """A prompt and how many tokens follow it."""

    prompt_token_ids: list[int]
    max_tokens: int


def mixed(num_requests: int, vocab_size: int, *, low: int = 64, high: int = 256, seed: int = 0) -> list[Job]:
    """Prompts and outputs of `low` to `high` tokens each, uniformly."""
    rng = random.Random(seed)
    return [
        Job([rng.randrange(vocab_size) for _ in range(rng.randint(low, high))], rng.randint(low, high))
        for _ in range(num_requests)
    ]


def chats(
    num_chats: int,
    vocab_size: int,
    *,
    turns: int = 8,
    system: int = 512,
    user: int = 32,
    reply: int = 32,
    seed: int = 0,
) -> list[list[Job]]:
    """Conversations of several turns under one system prompt. What is returned is what the user adds in each turn.

    Returns:
        For each chat its turns; the prompt of a turn is the whole conversation so far (replies included, which only the
        run knows) and these tokens. The first turn's begin with the system prompt.
    """
    rng = random.Random(seed)
    shared = [rng.randrange(vocab_size) for _ in range(system)]
    found = []
    for _ in range(num_chats):
        said = [[rng.randrange(vocab_size) for _ in range(user)] for _ in range(turns)]
        found.append([Job([*shared, *said[0]], reply), *(Job(each, reply) for each in said[1:])])
    return found
