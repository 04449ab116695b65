"""`Speculation`: what a draft head guesses in a simulation, how often it is right, and what it is made of.

The head is one more layer of the model with its own KV, in front of it a product that joins a hidden state with the
next token's embedding, and behind it the model's own unembedding (DeepSeek-V3's multi-token prediction, arXiv
2412.19437, section 2.2; EAGLE is alike). It runs once over a step's tokens, and once more for each guess after the
first. Which guesses are right is chance, but the same chance for the same request and token, whatever else the engine
does: nothing here has a state.
"""

import math
import random
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, takewhile
from operator import mul

from miniserve.errors import InvalidRequestError
from miniserve.hardware.shape import Shape


@dataclass(frozen=True)
class Speculation:
    """Guesses for each request in each step.

    Args:
        acceptance: of the first guess, the second, …: how often it is right where those before it were.
    """

    acceptance: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.acceptance:
            raise InvalidRequestError("a draft has at least one guess: give the share of each that is right")
        for share in self.acceptance:
            if not 0 <= share <= 1:
                raise InvalidRequestError(f"a guess is right in a share of {share} of all cases: that is not 0 to 1")

    @classmethod
    def parse(cls, text: str) -> "Speculation":
        """From "0.8,0.6": the first guess is right in 80% of all cases, the second in 60% of those."""
        try:
            return cls(tuple(float(share) for share in text.split(",")))
        except ValueError:
            raise InvalidRequestError(f"'{text}' is no list of shares such as 0.8,0.6") from None

    @property
    def guesses(self) -> int:
        """In a draft."""
        return len(self.acceptance)

    @cached_property
    def _right(self) -> tuple[float, ...]:
        """Shares of drafts that are right up to the first guess, the second, …"""
        return tuple(accumulate(self.acceptance, mul))

    @property
    def tokens_per_step(self) -> float:
        """Mean: the guesses that are right, and the model's own token."""
        return 1 + math.fsum(self._right)

    def right(self, request_id: str, position: int, guesses: int) -> int:
        """How many of a request's `guesses` from `position` on are right."""
        chance = random.Random(f"{request_id}:{position}").random()
        return sum(1 for _ in takewhile(lambda share: chance < share, self._right[:guesses]))


def draft_head(shape: Shape) -> Shape:
    """The head's one layer, of the kind that most of the model's are."""
    return replace(shape, layers=1, dense_layers=0)
