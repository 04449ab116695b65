"""`Pending`: what has been asked of an engine and has not been answered to the end: submissions, reports, deletions.

Invariants: everything that is opened here ends: with its answer, with an error when the engine dies or is stopped, or
because whoever asked has gone. An answer to what is no longer open is dropped. Single-threaded, on one event loop.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

from miniserve.errors import InvalidRequestError
from miniserve.server.errors import APIError
from miniserve.server.messages import Accepted, Deleted, Refused, Report, Stepped
from miniserve.server.reply import Reply

#: What an engine says of what is open.
Answer = Stepped | Accepted | Refused | Report | Deleted


class Pending:
    """Of one engine process after another."""

    def __init__(self) -> None:
        self._keys = count()
        self._replies: dict[int, Reply] = {}
        self._reports: list[asyncio.Future[Report]] = []
        self._deletions: dict[int, asyncio.Future[dict[str, int]]] = {}

    @property
    def num_open(self) -> int:
        """Outputs that have not ended."""
        return sum(reply.num_open for reply in self._replies.values())

    def open(self, choices: int, on_close: Callable[[Reply], None]) -> Reply:
        """A reply that takes what comes under its key until it is closed. `on_close`: told of that, once."""
        key = next(self._keys)

        def close() -> None:
            del self._replies[key]
            on_close(reply)

        reply = self._replies[key] = Reply(key, choices, close)
        return reply

    def report(self) -> asyncio.Future[Report]:
        """The next one that comes."""
        answer: asyncio.Future[Report] = asyncio.get_running_loop().create_future()
        self._reports.append(answer)
        return answer

    @contextmanager
    def deletion(self) -> Iterator[tuple[int, asyncio.Future[dict[str, int]]]]:
        """The key of an order to delete, and what will have come of it."""
        key = next(self._keys)
        deleted: asyncio.Future[dict[str, int]] = asyncio.get_running_loop().create_future()
        self._deletions[key] = deleted
        try:
            yield key, deleted
        finally:
            del self._deletions[key]

    def take(self, answer: Answer) -> None:
        """The engine has said something."""
        match answer:
            case Stepped(pieces):
                for key, piece in pieces:
                    if reply := self._replies.get(key):
                        reply.put(piece)
            case Accepted(key):
                if reply := self._replies.get(key):
                    reply.accept()
            case Refused(key, reason):
                if reply := self._replies.get(key):
                    reply.refuse(InvalidRequestError(reason))
            case Report():
                for asked in self._reports:
                    if not asked.done():
                        asked.set_result(answer)
                self._reports.clear()
            case Deleted():
                self._deleted(answer)

    def fail_all(self, error: APIError) -> None:
        """End everything that is open with an error."""
        for reply in self._replies.values():
            reply.fail(error)
        for asked in self._reports:
            if not asked.done():
                asked.set_exception(error)
        self._reports.clear()
        for deleted in self._deletions.values():
            if not deleted.done():
                deleted.set_exception(error)

    def _deleted(self, answer: Deleted) -> None:
        deleted = self._deletions.get(answer.key)
        if deleted is None or deleted.done():
            return
        if answer.error:
            deleted.set_exception(APIError(500, f"some KV is still there: {answer.error}", code="kv_not_deleted"))
        else:
            deleted.set_result(answer.blocks)
