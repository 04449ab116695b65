"""Prompts of a wanted length: token ids where the vocabulary is known, else plain English words.

Each prompt is its own (no two share a block, unless a trace says that they do) and depends on nothing but the seed.
Words are short and common, so that one is about one token in most vocabularies; how many they were, the server says.
"""

import random
from collections.abc import Callable
from typing import TypeVar

from miniserve.workloads.arrivals import Arrival

T = TypeVar("T")
MakePrompt = Callable[[Arrival], str | list[int]]
WORDS = """
the of and to in is was he for it with as his on be at by had not are but from or have an they which one you were her
all she there would their we him been has when who will more no if out so said what up its about into than them can
only other new some could time these two may then do first any my now such like our over man me even most made after
also did many before must through back years where much your way well down should because each just those people how
too little state good very make world still own see men work long get here between both life being under never day
same another know while last might us great old year off come since against go came right used take three
"""


def token_prompts(vocab_size: int, seed: int) -> MakePrompt:
    """Prompts of random token ids below `vocab_size`, which is at least 1."""
    return _prompts(seed, lambda rng, count: [rng.randrange(vocab_size) for _ in range(count)])


def word_prompts(seed: int) -> MakePrompt:
    """Prompts of random words."""
    words = WORDS.split()
    fill = _prompts(seed, lambda rng, count: rng.choices(words, k=count))
    return lambda arrival: " ".join(fill(arrival))


def _prompts(seed: int, draw: Callable[[random.Random, int], list[T]]) -> Callable[[Arrival], list[T]]:
    """Contents for arrivals: a block's depend on its name alone, and what no block covers is drawn anew."""
    own = random.Random(f"prompts {seed}")

    def fill(arrival: Arrival) -> list[T]:
        content: list[T] = []
        for name in arrival.blocks:
            content += draw(random.Random(f"block {name} of {seed}"), arrival.block_size)
        del content[arrival.prompt_tokens :]
        return content + draw(own, arrival.prompt_tokens - len(content))

    return fill
