"""`Departures`: requests that leave this engine once it has chosen a token for them, to go on in another one.

What is said of each in the end is that it has moved, and where its KV can be fetched; that is known when it has been
copied, some steps later. Its token was said before.
"""

from typing import TYPE_CHECKING

from miniserve.core.request import FinishReason
from miniserve.server.messages import Piece

if TYPE_CHECKING:
    from miniserve.fleet.moves import Moves
    from miniserve.runtime.generation import Delta
    from miniserve.runtime.text_engine import TextEngine


class Departures:
    """Of one engine.

    Args:
        text_engine: where they end.
        moves: its connector; None: nobody leaves.
    """

    def __init__(self, text_engine: "TextEngine", moves: "Moves | None") -> None:
        self._text, self._moves = text_engine, moves
        self._waiting: dict[str, int] = {}  # for their token, by name, and the key of each
        self._leaving: dict[str, tuple[int, Piece]] = {}  # whose KV is being copied

    def expect(self, name: str, key: int) -> None:
        """That generation, of that submission, leaves after its next token."""
        self._waiting[name] = key

    def after(self, delta: "Delta") -> None:
        """A step did something for a generation: if it was waited for, it ends here."""
        name = delta.generation.request_id
        if name not in self._waiting or not (delta.tokens or delta.generation.finished):
            return
        key = self._waiting.pop(name)
        if not delta.generation.finished:
            last = Piece(0, "", [], None, FinishReason.MOVED.value, None, delta.choice.request.num_reused)
            self._leaving[name] = key, last
            self._text.abort(name, FinishReason.MOVED)

    def pieces(self) -> list[tuple[int, Piece]]:
        """The last pieces of those whose KV has been copied since the last call."""
        answers = self._moves.answers() if self._moves and self._leaving else []
        done = [(self._leaving.pop(name), offer) for name, offer in answers if name in self._leaving]
        return [(key, last._replace(offer=offer)) for (key, last), offer in done]

    def withdraw(self, name: str) -> None:
        """Nobody needs that generation any more, nor what it left here."""
        self._waiting.pop(name, None)
        self._leaving.pop(name, None)
        if self._moves:
            self._moves.withdraw(name)
