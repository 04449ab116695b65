"""OpenTelemetry spans, one a request for output, if the operator asks for them.

Asked for by the variable that every exporter of OpenTelemetry reads, `OTEL_EXPORTER_OTLP_ENDPOINT`; its other `OTEL_…`
variables hold, too. A span continues the trace that the request's `traceparent` names. Attributes have the names of
OpenTelemetry's semantic conventions for HTTP and for generative AI, and names of our own where these have none:
`miniserve.request_id`, as in the log and in `x-request-id`, `miniserve.tenant`, and `miniserve.version` of a model that
has several. When the engine had accepted the request and when its first output came are events. No prompt and no output
is ever in a span.
Unless it is asked for, nothing of OpenTelemetry is imported and no layer is added.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from miniserve._version import __version__
from miniserve.errors import InvalidRequestError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as OpenTelemetrySpan

ENDPOINT_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACED_PATHS = frozenset(("/v1/completions", "/v1/chat/completions"))

Value = str | int | float | bool | list[str]


class Span(Protocol):
    """What is told about one request."""

    def event(self, name: str) -> None:
        """Something has happened, now."""

    def set(self, attributes: Mapping[str, Value | None]) -> None:
        """Facts; those that are None are left out."""

    def fail(self, reason: str) -> None:
        """It ends with an error that is not the caller's."""


class NoSpan:
    """Tells nobody."""

    def event(self, name: str) -> None:
        """Of `Span`."""

    def set(self, attributes: Mapping[str, Value | None]) -> None:
        """Of `Span`."""

    def fail(self, reason: str) -> None:
        """Of `Span`."""


class RecordedSpan:
    """Tells OpenTelemetry."""

    def __init__(self, span: "OpenTelemetrySpan") -> None:
        self._span = span

    def event(self, name: str) -> None:
        """Of `Span`."""
        self._span.add_event(name)

    def set(self, attributes: Mapping[str, Value | None]) -> None:
        """Of `Span`."""
        self._span.set_attributes({name: value for name, value in attributes.items() if value is not None})

    def fail(self, reason: str) -> None:
        """Of `Span`."""
        from opentelemetry.trace import StatusCode

        self._span.set_status(StatusCode.ERROR, reason)


def span_of(request: Request) -> Span:
    """The one of a request; tells nobody if traces are off."""
    span: Span = getattr(request.state, "span", NoSpan())
    return span


class Traced:
    """A layer of the application: gives requests their spans.

    Args:
        app: what is inside.
        provider: where spans go.
    """

    def __init__(self, app: ASGIApp, provider: "TracerProvider") -> None:
        self._app, self._tracer = app, provider.get_tracer("miniserve", __version__)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of ASGI."""
        if scope["type"] != "http" or scope["path"] not in TRACED_PATHS:
            await self._app(scope, receive, send)
            return
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        context = extract(Headers(scope=scope))
        state: dict[str, Any] = scope.setdefault("state", {})
        method, path = scope["method"], scope["path"]
        with self._tracer.start_as_current_span(
            f"{method} {path}", context, kind=SpanKind.SERVER,
            record_exception=False, set_status_on_exception=False,  # an error's message may quote a prompt
        ) as recorded:  # fmt: skip
            span = state["span"] = RecordedSpan(recorded)
            span.set({"http.request.method": method, "http.route": path})

            async def send_noting_status(message: Message) -> None:
                if message["type"] == "http.response.start":
                    status = message["status"]
                    span.set({"http.response.status_code": status})
                    if status >= 500:
                        span.fail(f"HTTP {status}")
                await send(message)

            await self._app(scope, receive, send_noting_status)
            tenant = state.get("tenant")
            span.set({
                "miniserve.request_id": state.get("request_id"),
                "miniserve.tenant": tenant.name if tenant else None,
                "miniserve.version": state.get("version") or None,
            })  # fmt: skip


def provider_from_environment() -> "TracerProvider | None":
    """Where the environment wants spans to go; None: nowhere.

    Raises:
        InvalidRequestError: somewhere, and OpenTelemetry is not installed.
    """
    if not os.environ.get(ENDPOINT_VARIABLE):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise InvalidRequestError(f"{ENDPOINT_VARIABLE} needs {error.name}: pip install 'miniserve[traces]'") from error
    named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "miniserve"}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
