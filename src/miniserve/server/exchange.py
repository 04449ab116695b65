"""What surrounds every exchange: an id, limits on headers and body, who asks, and a line in the log.

Plain ASGI around the whole application, so that a response that streams passes through unbuffered. A request's id comes
from its `x-request-id` if that is a plain word, and goes back in the same header of every response.
The log has methods, paths, statuses and times; never a prompt, an output or a key. An error that nobody expected is
logged by its kind and place (see `logs`).
"""

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from miniserve.server.access import Access
from miniserve.server.errors import ADMIN_PREFIX, APIError
from miniserve.server.view import pages as view

OPEN_PATHS = frozenset(("/health", "/ready", "/version", "/metrics", "/openapi.json")) | view.OPEN_PATHS
MAX_HEADER_BYTES = 64 * 2**10
NOTHING_SENT = 499  # as a status: the client had gone

logger = logging.getLogger("miniserve.server.access")


class Exchange:
    """The outermost layer of the application.

    Args:
        app: what is inside.
        access: who may ask.
        admins: who may ask for what is below /admin; None: there is nothing.
        max_body_bytes: a larger body is refused before it is read.
    """

    def __init__(self, app: ASGIApp, access: Access, admins: Access | None, max_body_bytes: int) -> None:
        self._app, self._access, self._admins, self._max_body_bytes = app, access, admins, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, headers = time.monotonic(), Headers(scope=scope)
        given = headers.get("x-request-id", "")
        name = given if re.fullmatch(r"[\w.:-]{1,128}", given, re.ASCII) else secrets.token_hex(12)
        state = scope.setdefault("state", {})
        state["request_id"] = name
        status = NOTHING_SENT

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = MutableHeaders(scope=message)
                own["x-request-id"] = name
                if version := state.get("version"):
                    own["x-model-version"] = version
            await send(message)

        try:
            self._check_sizes(headers)
            if scope["path"] in OPEN_PATHS:
                await self._app(scope, receive, send_with_id)
            else:
                of_admins = self._admins is not None and scope["path"].startswith(f"{ADMIN_PREFIX}/")
                access = self._admins if self._admins is not None and of_admins else self._access
                state["tenant"] = tenant = access.find(headers.get("authorization"))
                with access.enter(tenant):
                    await self._app(scope, self._bounded(receive), send_with_id)
        except APIError as error:
            await send_error(error, send_with_id)
        except Exception as error:
            if status != NOTHING_SENT:
                raise
            logger.exception("an error of the server", extra={"request_id": name})
            await send_error(APIError(500, f"an error of the server: {type(error).__name__}"), send_with_id)
        finally:
            tenant = state.get("tenant")
            logger.info(
                "request",
                extra={
                    "request_id": name,
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "seconds": round(time.monotonic() - started, 4),
                    "tenant": tenant.name if tenant else None,
                    "version": state.get("version") or None,
                    "user": state.get("user"),
                },
            )

    def _too_large(self) -> str:
        return f"the body is too large: at most {self._max_body_bytes} bytes are taken"

    def _check_sizes(self, headers: Headers) -> None:
        if sum(len(name) + len(value) for name, value in headers.raw) > MAX_HEADER_BYTES:
            raise APIError(431, f"the headers are too large: at most {MAX_HEADER_BYTES} bytes are taken")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._max_body_bytes:
            raise APIError(413, self._too_large(), code="body_too_large")

    def _bounded(self, receive: Receive) -> Receive:
        """For bodies that do not say how long they are."""
        size = 0

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._max_body_bytes:
                raise HTTPException(413, self._too_large())
            return message

        return bounded


async def send_error(error: APIError, send: Send) -> None:
    """An error as a response."""
    headers = {"content-type": "application/json", **error.headers}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": error.body})
