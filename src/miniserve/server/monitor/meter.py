"""`Meter`: one request for output, as it is counted: what it took, and whether it met the objective.

Times are the server's own: from the moment that the request had arrived whole, to the moments at which it had output to
send. What a network adds is not in them; a client that reads so slowly that the server has to wait is.
A reply that is sent whole is judged by the same moments, although its client sees none of them.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from miniserve.server.messages import Piece
from miniserve.server.replies import Usage
from miniserve.workloads.service import SLO

CLIENT_LEFT = 499  # no status of HTTP: nobody was there to be sent one


@dataclass
class _Choice:
    """When the output of one choice came: the first, the newest, and the longest time between two parts."""

    first_s: float
    last_s: float
    worst_gap_s: float = 0.0
    num_tokens: int = 0
    has_ended: bool = False

    def came(self, piece: Piece, now_s: float) -> None:
        self.worst_gap_s = max(self.worst_gap_s, now_s - self.last_s)
        self.last_s = now_s
        self.num_tokens += len(piece.tokens)
        self.has_ended = piece.finish_reason is not None


class Meter:
    """Of one request.

    Args:
        clock: seconds, of any origin.

    Attributes:
        usage: its tokens; None: the engine was not asked, or refused.
        spent_s: its share of the engines' time.
        failure: the status of the error that it ended with behind a status that said otherwise, as a stream's does.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._arrived_s = clock, clock()
        self._choices: dict[int, _Choice] = {}
        self.usage: Usage | None = None
        self.spent_s = 0.0
        self.failure: int | None = None

    @property
    def seconds(self) -> float:
        """Since it arrived."""
        return self._clock() - self._arrived_s

    def arrived(self) -> None:
        """It is here whole."""
        self._arrived_s = self._clock()

    def count(self, piece: Piece) -> None:
        """A part of its output is about to be sent."""
        self.spent_s += piece.spent_s
        if piece.tokens or piece.finish_reason:
            now_s = self._clock()
            self._choices.setdefault(piece.choice, _Choice(now_s, now_s)).came(piece, now_s)

    def met(self, slo: SLO, status: int, *, was_taken: bool) -> bool | None:
        """Whether it met the objective, now that it has ended; None: it says nothing of the server.

        That is so of what is wrong with a request, of one beyond its key's limits, and of one whose client left before
        it was due. Of a client that left later, what it got until then is judged.

        Args:
            slo: the limits, of each choice.
            status: what its client was told.
            was_taken: whether it was within its key's limits: what is refused then, is for want of room.
        """
        if status >= 500:
            return False
        if status == 429:
            return False if was_taken else None
        if 400 <= status != CLIENT_LEFT:
            return None
        if not self._choices:
            return False if self.seconds > slo.ttft_s else None
        return all(self._holds(choice, slo) for choice in self._choices.values())

    def _holds(self, choice: _Choice, slo: SLO) -> bool:
        several = choice.num_tokens > 1
        silent_s = 0.0 if choice.has_ended else self._clock() - choice.last_s
        return slo.holds(
            ttft_s=choice.first_s - self._arrived_s,
            itl_s=max(choice.worst_gap_s, silent_s),
            tpot_s=(choice.last_s - choice.first_s) / (choice.num_tokens - 1) if several else 0.0,
            e2e_s=choice.last_s - self._arrived_s,
        )
