"""`Reply`: what the engine sends for one submission, on its way to one reader.

The engine puts pieces in at its pace, the reader takes them out at its own; what is not taken yet is joined, one piece
a choice. Single-threaded, on the event loop.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

from miniserve.core.request import FinishReason
from miniserve.errors import InvalidRequestError
from miniserve.server.errors import APIError
from miniserve.server.messages import Piece


class Reply:
    """The outputs of one submission. Use it as a context manager: leaving the block aborts what has not ended.

    Args:
        key: the engine's number for it.
        num_choices: how many outputs there will be.
        on_close: called once when its reader is done with it.

    Attributes:
        accepted: done when the engine has queued it, or an exception.
        num_open: outputs that have not ended.
        moved: whether one of them goes on in another engine.
    """

    def __init__(self, key: int, num_choices: int, on_close: Callable[[], None]) -> None:
        self.key, self.num_open, self.moved = key, num_choices, False
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_close: Callable[[], None] | None = on_close
        self._pending: dict[int, Piece] = {}
        self._news = asyncio.Event()
        self._error: APIError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """Pieces of all choices as they come, until every choice has ended.

        Raises:
            APIError: the engine failed.
        """
        while self._pending or self.num_open or self._error:
            await self._news.wait()
            self._news.clear()
            if self._error:
                raise self._error
            pending, self._pending = self._pending, {}
            for piece in pending.values():
                yield piece

    def close(self) -> None:
        """Abort what has not ended, and have it forgotten."""
        if self._on_close:
            self._on_close()
            self._on_close = None

    def leave(self) -> None:
        """Close, but let what has moved stand until it has been fetched, or its time is up."""
        self.moved = False
        self.close()

    # The engine's side.

    def accept(self) -> None:
        """It is queued."""
        if not self.accepted.done():
            self.accepted.set_result(None)

    def refuse(self, error: InvalidRequestError) -> None:
        """It is out of range."""
        self.num_open = 0
        self._not_accepted(error)

    def put(self, piece: Piece) -> None:
        """Something came for a choice. Behind a failure nothing does."""
        if self._error:
            return
        earlier = self._pending.get(piece.choice)
        self._pending[piece.choice] = earlier.then(piece) if earlier else piece
        self.num_open -= piece.finish_reason is not None
        self.moved = self.moved or piece.finish_reason == FinishReason.MOVED.value
        self._news.set()

    def fail(self, error: APIError) -> None:
        """Nothing more will come."""
        if self.num_open:
            self._error, self.num_open = error, 0
            self._not_accepted(error)
            self._news.set()

    def _not_accepted(self, error: Exception) -> None:
        if not self.accepted.done():
            self.accepted.set_exception(error)
            self.accepted.exception()  # seen: where nobody waits any more, asyncio shall not complain
