"""`Proposer`: the seam for speculation, for whoever guesses tokens ahead of the model.

A decode step reads all weights to compute one token of each request; a few more cost little. So a guess of the next
tokens, a *draft*, is computed beside the last known token, and the model's own choice at each position says how far the
guess was right: the tokens up to there, and the one chosen where it went wrong, are what decoding one by one would have
given (speculative decoding: Leviathan, Kalman and Matias 2023; Chen et al. 2023).

A proposer may guess anything: a draft changes how soon tokens come and never which. So one that fails costs requests
their drafts and nothing else. It is called by the scheduler only, from its thread; `add_drafts` is the scheduler's last
act when it puts a step together.
"""

import logging
from collections.abc import Sequence
from typing import Protocol

from miniserve.core.block_tables import BlockTables
from miniserve.core.executor import Scheduled, Step
from miniserve.core.request import Request

logger = logging.getLogger(__name__)


class Proposer(Protocol):
    """Guesses what follows a request's tokens."""

    @property
    def longest(self) -> int:
        """The most tokens of a draft."""
        ...

    def propose(self, requests: Sequence[Request], rooms: Sequence[int]) -> Sequence[Sequence[int]]:
        """A draft for each request, from none to as many tokens as there is room for (at least one, at most `longest`).

        Since the last call a request has got tokens (a part of its draft or others), or is new. Whatever it raises is
        logged; these requests are forgotten then, and never asked for again.
        """
        ...

    def forget(self, request: Request) -> None:
        """The request has ended, or lost its blocks and may come back later. It may never have been proposed for."""
        ...


class NoProposer:
    """One token at a time."""

    longest = 0

    def propose(self, requests: Sequence[Request], rooms: Sequence[int]) -> Sequence[Sequence[int]]:  # noqa: ARG002
        """Nothing, for anyone."""
        return [()] * len(requests)

    def forget(self, request: Request) -> None:
        """Nothing is known of anyone."""


def add_drafts(step: Step, budget: int, proposer: Proposer, tables: BlockTables) -> None:
    """Let a step's decodes compute guesses too, by rank, as long as there is budget, and as free blocks allow.

    At least one token follows a draft, so it ends one before the request's last.
    """
    rooms: dict[int, int] = {}
    for index, part in enumerate(step.scheduled):
        room = min(proposer.longest, budget, part.request.max_length - len(part.request.token_ids) - 1)
        if part.num_tokens == 1 and part.samples and room > 0 and part.request.may_draft:
            rooms[index] = room
    if not rooms:
        return
    requests = [step.scheduled[index].request for index in rooms]
    try:
        drafts = proposer.propose(requests, list(rooms.values()))
    except Exception as error:
        names = ", ".join(request.request_id for request in requests)
        logger.warning("no tokens ahead can be guessed any more for %s: %r", names, error, exc_info=True)
        for request in requests:
            request.may_draft = False
            proposer.forget(request)
        return
    for (index, room), draft in zip(rooms.items(), drafts, strict=True):
        assert len(draft) <= room, "a draft has room"
        request, start = step.scheduled[index][:2]
        kept = draft[: tables.lend(request, min(len(draft), budget))]
        step.scheduled[index] = Scheduled(request, start, 1 + len(kept), kept)
        budget -= len(kept)
