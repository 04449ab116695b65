"""`NGramProposer`: guesses that what followed the last few tokens before will follow them again.

It needs no model: text that quotes its prompt (an edit, a summary, an answer from a document) or repeats itself is
found in the request's own tokens (prompt lookup: Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding).

Each request has an index from every run of 2 to 4 tokens to where it last ended. It grows by the tokens that came
since, so that a guess costs a few dictionary look-ups for each new token, whatever the length of the context; only the
first one reads the whole prompt. A run is entered once a token follows it: the last tokens never find themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from miniserve.core.request import Request
from miniserve.errors import InvalidRequestError

LENGTHS = (4, 3, 2)  # of a run, the longest first: the longer the match, the likelier it goes on alike


@dataclass(slots=True)
class _Index:
    """Where each run of tokens ended last: the position of the token behind it. Covers what lies before `end`."""

    end: int = 0
    behind: dict[tuple[int, ...], int] = field(default_factory=dict)

    def grow(self, tokens: Sequence[int]) -> None:
        """Enter the runs that a token follows by now."""
        for at in range(max(self.end, min(LENGTHS)), len(tokens)):
            for length in LENGTHS:
                if length <= at:
                    self.behind[tuple(tokens[at - length : at])] = at
        self.end = len(tokens)

    def following(self, tokens: Sequence[int]) -> int | None:
        """The position behind the latest earlier occurrence of the last tokens, as many of them as can be found."""
        for length in LENGTHS:
            at = self.behind.get(tuple(tokens[-length:]))
            if at is not None:
                return at
        return None


class NGramProposer:
    """Drafts of up to `longest` tokens from the request's own text.

    Raises:
        InvalidRequestError: `longest` is below 1.
    """

    def __init__(self, longest: int) -> None:
        if longest < 1:
            raise InvalidRequestError(f"a draft of {longest} tokens: it must be at least 1")
        self.longest = longest
        self._indices: dict[str, _Index] = {}

    def propose(self, requests: Sequence[Request], rooms: Sequence[int]) -> list[list[int]]:
        """See `Proposer.propose`."""
        return [self._draft(request, room) for request, room in zip(requests, rooms, strict=True)]

    def forget(self, request: Request) -> None:
        """Drop the request's index."""
        self._indices.pop(request.request_id, None)

    def _draft(self, request: Request, room: int) -> list[int]:
        tokens = request.token_ids
        index = self._indices.setdefault(request.request_id, _Index())
        index.grow(tokens)
        at = index.following(tokens)
        if at is None:
            return []
        draft: list[int] = []
        for position in range(at, at + room):
            # Text that repeats itself goes on behind its end, in the draft.
            draft.append(tokens[position] if position < len(tokens) else draft[position - len(tokens)])
        return draft
