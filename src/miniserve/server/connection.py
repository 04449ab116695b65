"""One client's connection, with an end to waiting for it.

uvicorn's own protocol over h11 bounds the pause between two requests only. Here a request must also have arrived whole,
head and body, within a time, however few bytes at once it comes in; and a client that takes nothing of what it is sent
is cut off. Without the one, connections that say nothing pile up; without the other, outputs that nobody reads.
What is answered here, before there is a request, has the form and the headers of all other errors.
"""

import asyncio
import sys
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from miniserve.server.errors import APIError
from miniserve.server.exchange import MAX_HEADER_BYTES

REQUEST_TIMEOUT_S = 60.0  # from the first byte of a request, or from the connection, to the end of its body
WRITE_TIMEOUT_S = 60.0  # for a full send buffer (64 KiB) to get down to its low mark (16)

_TOO_LARGE = APIError(431, f"the headers are too large: at most {MAX_HEADER_BYTES} bytes are taken")
_NO_HTTP = APIError(400, "this is no HTTP request")


class Connection(H11Protocol):
    """For `uvicorn.Config(http=…)`. Times are the class's, so that a test has a class with shorter ones."""

    request_timeout_s = REQUEST_TIMEOUT_S
    write_timeout_s = WRITE_TIMEOUT_S

    _arriving: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Of asyncio."""
        super().connection_made(transport)
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Of asyncio."""
        self._request_is_here()
        self._progress()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Of asyncio."""
        if self._arriving is None and self.conn.their_state is h11.IDLE:
            self._expect_request()
        super().data_received(data)
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._request_is_here()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Of uvicorn, while it handles h11's error, which alone tells a head that is too long."""
        error = sys.exc_info()[1]
        too_large = isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == _TOO_LARGE.status
        self._refuse(_TOO_LARGE if too_large else _NO_HTTP)

    def pause_writing(self) -> None:
        """Of asyncio: the send buffer is full."""
        super().pause_writing()
        self._stalled = self._stalled or self.loop.call_later(self.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Of asyncio: it has been taken."""
        self._progress()
        super().resume_writing()

    def _expect_request(self) -> None:
        self._arriving = self.loop.call_later(self.request_timeout_s, self._too_slow)

    def _request_is_here(self) -> None:
        if self._arriving:
            self._arriving.cancel()
            self._arriving = None

    def _progress(self) -> None:
        if self._stalled:
            self._stalled.cancel()
            self._stalled = None

    def _too_slow(self) -> None:
        self._arriving = None
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # nothing has been answered yet
            message = f"the request did not arrive whole within {self.request_timeout_s:g} s"
            self._refuse(APIError(408, message))
        self.transport.close()

    def _refuse(self, error: APIError) -> None:
        """Answer without h11, whose state may be anything, and close the connection."""
        body = error.body
        head = "\r\n".join((
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}", "content-type: application/json",
            f"content-length: {len(body)}", "cache-control: no-store", "x-content-type-options: nosniff",
            "connection: close", "", "",
        ))  # fmt: skip
        self.transport.write(head.encode() + body)
        self.transport.close()
