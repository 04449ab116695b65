"""`Metered`: a layer of the application that counts each request for output, however it ends, once."""

from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from miniserve.server.monitor.ledger import Ledger
from miniserve.server.monitor.meter import CLIENT_LEFT, Meter
from miniserve.server.traces import TRACED_PATHS as COUNTED_PATHS


def meter_of(request: Request) -> Meter:
    """The one of a request; one that nobody reads if it is not counted."""
    meter: Meter = getattr(request.state, "meter", None) or Meter()
    return meter


class Metered:
    """The layer. It goes around `Exchange`, which says whose a request is.

    Args:
        app: what is inside.
        ledger: where it is written down.
    """

    def __init__(self, app: ASGIApp, ledger: Ledger) -> None:
        self._app, self._ledger = app, ledger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of ASGI."""
        if scope["type"] != "http" or scope["path"] not in COUNTED_PATHS:
            await self._app(scope, receive, send)
            return
        state: dict[str, Any] = scope.setdefault("state", {})
        meter = state["meter"] = Meter()
        status = CLIENT_LEFT  # nothing was sent

        async def receive_noting_arrival() -> Message:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body"):
                meter.arrived()
            return message

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive_noting_arrival, send_noting_status)
        except Exception:
            meter.failure = 500
            raise
        finally:
            tenant = state.get("tenant")
            self._ledger.enter(
                tenant.name if tenant else "", state.get("version", ""), status, meter, was_taken="version" in state
            )
