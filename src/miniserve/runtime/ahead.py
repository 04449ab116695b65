"""Where a token is chosen: at a request's end, or at a place that it reaches if its draft is right so far.

What is chosen hangs on the history: penalties count the tokens before, `min_tokens` and the random number go by how
many there are. Each position of a draft has its own, and the sampler cannot tell it from a request that has come this
far.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from miniserve.core.request import Request
from miniserve.core.sampling_params import Limits, SamplingParams


class Position(Protocol):
    """What choosing a token needs to know. A `Request` is one: its own end."""

    @property
    def request_id(self) -> str:
        """For errors."""
        ...

    @property
    def params(self) -> SamplingParams:
        """How to choose."""
        ...

    @property
    def limits(self) -> Limits:
        """When stop tokens are allowed."""
        ...

    @property
    def seed(self) -> int:
        """Of the request's random numbers."""
        ...

    @property
    def token_ids(self) -> list[int]:
        """Prompt and output so far."""
        ...

    @property
    def output_token_ids(self) -> list[int]:
        """The output so far."""
        ...

    @property
    def num_output_tokens(self) -> int:
        """How many there are."""
        ...

    def allowed(self) -> bytes | None:
        """Which tokens the request's grammar lets come next (see `Matcher.mask`); None without a grammar."""
        ...


@dataclass(frozen=True, slots=True)
class Ahead:
    """A request's position after some guesses of its draft, as if they had been chosen."""

    request: Request
    guesses: Sequence[int]

    @property
    def request_id(self) -> str:
        """The request's."""
        return self.request.request_id

    @property
    def params(self) -> SamplingParams:
        """The request's."""
        return self.request.params

    @property
    def limits(self) -> Limits:
        """The request's."""
        return self.request.limits

    @property
    def seed(self) -> int:
        """The request's."""
        return self.request.seed

    @property
    def token_ids(self) -> list[int]:
        """The request's, and the guesses."""
        return [*self.request.token_ids, *self.guesses]

    @property
    def output_token_ids(self) -> list[int]:
        """The request's, and the guesses."""
        return [*self.request.output_token_ids, *self.guesses]

    @property
    def num_output_tokens(self) -> int:
        """The request's, and the guesses."""
        return self.request.num_output_tokens + len(self.guesses)

    def allowed(self) -> bytes | None:
        """Behind the guesses."""
        matcher = self.request.matcher
        return matcher.mask(self.guesses) if matcher else None


def positions(request: Request, draft: Sequence[int]) -> list[Position]:
    """Where tokens are chosen when a request's last token and a draft are computed: [1 + len(draft)]."""
    return [request, *(Ahead(request, draft[:count]) for count in range(1, len(draft) + 1))]


def after_pending(request: Request) -> Position:
    """Where a token is chosen when the request's last token is not known here: for those that no history matters to."""
    return Ahead(request, (-1,))
