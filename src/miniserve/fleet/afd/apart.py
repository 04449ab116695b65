"""`Apart`: how an engine is taken apart, and whether a model can be."""

from typing import NamedTuple

from miniserve.errors import InvalidRequestError
from miniserve.model.config import ModelConfig
from miniserve.model.expert_plan import ExpertOptions, plan_experts
from miniserve.model.sharding import sharded_config

WHOLE = ExpertOptions()
BATCHES = 2  # that take turns: enough where the way to the other side is short against what is computed there


class Apart(NamedTuple):
    """Ranks of either side, and batches that take turns. Attention's ranks come first in every numbering.

    A mixture's experts are shared out whole among the ranks of the other side, without copies.
    """

    attention: int
    feed_forward: int
    batches: int = BATCHES

    @classmethod
    def parse(cls, text: str, batches: int = BATCHES) -> "Apart":
        """From "1x2": one rank of attention, two for the feed-forward parts.

        Raises:
            InvalidRequestError: it is no such pair, or a number is not positive.
        """
        numbers = text.split("x")
        if len(numbers) != 2 or not all(number.isascii() and number.isdecimal() for number in numbers):
            raise InvalidRequestError(
                f"afd is {text!r}: it must be two numbers such as 1x2, attention and feed-forward"
            )
        apart = cls(int(numbers[0]), int(numbers[1]), batches)
        if min(apart) < 1:
            raise InvalidRequestError(f"afd is {text!r} with {batches} batches: there must be 1 of each at least")
        return apart

    @property
    def size(self) -> int:
        """All ranks."""
        return self.attention + self.feed_forward

    def check(self, config: ModelConfig) -> None:
        """Raise InvalidRequestError, naming the size, where a model cannot be shared out so."""
        sharded_config(config, self.attention, side="attention")
        sharded_config(config, self.feed_forward, whole_experts=config.moe is not None, side="feed-forward")
        if config.moe:
            plan_experts(config, self.feed_forward, WHOLE)

    def __str__(self) -> str:
        return f"{self.attention}x{self.feed_forward}"
