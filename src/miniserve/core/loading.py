"""When to load KV rather than compute it again: whichever is faster, for as long a prefix as that holds.

Loading takes time by the byte, computing by the token and, where attention weighs, by its square; so it is long
prefixes that are worth loading, and from a fast tier more than from a slow one. Both times are estimates: of computing
from a measured rate, of loading from the loads before. What the device could do for others meanwhile is left out, which
speaks for loading; what is equal is loaded.

Torch-free, and without a clock: the engine's tiers and the simulator's ask the same question.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

RECENT = 0.2  # weight of the newest transfer in a rate
TRIES = 64  # a tier that was too slow so often is tried again: what made it slow may be over

Seconds = Callable[[int, int], float]
"""Of computing so many tokens behind so many: (start, num_tokens)."""


class Piece(NamedTuple):
    """Consecutive tokens that one tier has, and how long they would take from there."""

    num_tokens: int
    seconds: float


def worth_loading(start: int, pieces: Sequence[Piece], recompute_s: Seconds) -> int:
    """How many tokens of `pieces`, which follow `start`, to load: none, or whole pieces from the first on.

    Within a piece the gain is convex (loading is linear, computing is not less), so it is largest at one of its ends.
    """
    best, gain, num_tokens, seconds = 0, 0.0, 0, 0.0
    for piece in pieces:
        num_tokens += piece.num_tokens
        seconds += piece.seconds
        if (saved := recompute_s(start, num_tokens) - seconds) >= gain:
            best, gain = num_tokens, saved
    return best


@dataclass(frozen=True)
class Recompute:
    """Time to compute a prompt's tokens, on a device of a known rate.

    Attributes:
        flops_per_token: of all that does not depend on the position: two a weight that a token passes through.
        flops_per_pair: of a token's attention to one token, itself included: 4 · layers · heads · head_dim.
        flops_per_s: what the device was measured to do of these.
    """

    flops_per_token: float
    flops_per_pair: float
    flops_per_s: float

    @classmethod
    def measured(cls, flops_per_token: float, flops_per_pair: float, num_tokens: int, seconds: float) -> "Recompute":
        """From the time that a prompt of so many tokens took."""
        one = cls(flops_per_token, flops_per_pair, 1.0)
        return cls(flops_per_token, flops_per_pair, one(0, num_tokens) / seconds)

    def __call__(self, start: int, num_tokens: int) -> float:
        """Seconds for tokens [start, start + num_tokens)."""
        pairs = num_tokens * start + num_tokens * (num_tokens + 1) / 2
        return (self.flops_per_token * num_tokens + self.flops_per_pair * pairs) / self.flops_per_s


class Rate:
    """Bytes a second of a tier's loads, the recent ones above all.

    Until there is one, loading is taken to cost nothing: it has to be tried to be known.
    """

    def __init__(self) -> None:
        self._bytes = self._seconds = 0.0
        self._declined = 0

    @property
    def bytes_per_s(self) -> float | None:
        """None before the first load."""
        return self._bytes / self._seconds if self._seconds else None

    def observe(self, num_bytes: int, seconds: float) -> None:
        """A load took so long."""
        self._bytes = self._bytes * (1 - RECENT) + num_bytes * RECENT
        self._seconds = self._seconds * (1 - RECENT) + seconds * RECENT
        self._declined = 0

    def decline(self) -> None:
        """What it has was computed again."""
        self._declined += 1
        if self._declined >= TRIES:
            self._bytes = self._seconds = 0.0

    def seconds(self, num_bytes: int) -> float:
        """For so many bytes."""
        return num_bytes * self._seconds / self._bytes if self._bytes else 0.0
