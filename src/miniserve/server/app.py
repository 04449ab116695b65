"""The application: its routes, and how errors leave it.

`make_app` builds it around engines that have been started; nothing is global. What needs a model is in `routes`.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from miniserve._version import __version__
from miniserve.server.access import Access
from miniserve.server.errors import APIError, invalid, no_such_path, unreadable, wrong_method
from miniserve.server.exchange import Exchange
from miniserve.server.metrics import exposition
from miniserve.server.monitor.ledger import Ledger
from miniserve.server.monitor.metered import Metered
from miniserve.server.monitor.series import served
from miniserve.server.monitor.usage import add_usage
from miniserve.server.openapi import CHAT_OUTPUT, ERRORS, KEY, PLAIN_TEXT, TEXT_OUTPUT, describe
from miniserve.server.rollout.admin import Control, add_admin
from miniserve.server.rollout.lineup import Lineup
from miniserve.server.rollout.series import directed
from miniserve.server.rollout.shadow import Shadow
from miniserve.server.routes import Routes
from miniserve.server.secure_headers import SecureHeaders
from miniserve.server.traces import Traced
from miniserve.server.view.pages import add_docs, add_view
from miniserve.server.view.watchers import Watchers

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


@dataclass(frozen=True)
class ServerSettings:
    """What a server is told besides its engine.

    Attributes:
        max_body_bytes: of a request.
        allow_origins: of other sites whose pages may use this server from a browser; "*": of any.
        traces: where OpenTelemetry's spans go; None: nowhere.
        live_view: whether there is a page that shows the engine at work.
        ledger: where requests are counted.
    """

    max_body_bytes: int = 16 * 2**20
    allow_origins: Sequence[str] = ()
    traces: "TracerProvider | None" = None
    live_view: bool = True
    ledger: Ledger = field(default_factory=Ledger)


def make_app(lineup: Lineup, settings: ServerSettings, access: Access, control: Control | None = None) -> FastAPI:
    """The application around engines that have been started.

    Args:
        lineup: the engines.
        settings: see `ServerSettings`.
        access: who may ask.
        control: who may change which version answers; None: there is no admin API.
    """
    app = FastAPI(title="miniserve", version=__version__, docs_url=None, redoc_url=None, responses=ERRORS)
    # Each layer goes around those before it.
    admins = control.access if control else None
    app.add_middleware(Exchange, access=access, admins=admins, max_body_bytes=settings.max_body_bytes)
    app.add_middleware(Metered, ledger=settings.ledger)
    if settings.traces:
        app.add_middleware(Traced, provider=settings.traces)
    if settings.allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allow_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    app.add_middleware(SecureHeaders)
    shadow = Shadow()
    routes, started = Routes(lineup, shadow), int(time.time())

    @app.get("/v1/models", dependencies=[KEY])
    async def models() -> dict[str, Any]:
        """The model that is served, and its versions that are ready."""
        names = [lineup.model, *(f"{lineup.model}@{each.name}" for each in lineup.versions if each.name and each.ready)]
        model = {"object": "model", "created": started, "owned_by": "miniserve"}
        model["max_model_len"] = lineup.facts.max_model_len
        return {"object": "list", "data": [{"id": name} | model for name in names]}

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether this process answers."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        """Whether requests are taken: 503 while the engine starts, or the server is about to end."""
        lineup.check_ready()
        return {"status": "ready"}

    @app.get("/version")
    async def version() -> dict[str, str]:
        """Of this server."""
        return {"version": __version__}

    @app.get("/metrics", response_class=Response, responses=PLAIN_TEXT)
    async def metrics(request: Request) -> Response:
        """For Prometheus. By tenant only for a key that may watch, or where there are no keys."""
        by_tenant = access.lets_watch(request.headers.get("authorization"))
        counted = served(settings.ledger, lineup.model, by_tenant=by_tenant)
        more = chain(counted, [directed(lineup.traffic, lineup.model)])
        body, media_type = exposition(await lineup.reports(), lineup.model, more)
        return Response(body, media_type=media_type)

    for path, route, outputs in (
        ("/v1/completions", routes.completions, TEXT_OUTPUT),
        ("/v1/chat/completions", routes.chat, CHAT_OUTPUT),
    ):
        app.post(path, response_model=None, dependencies=[KEY], responses=outputs)(route)
    app.post("/tokenize", dependencies=[KEY])(routes.tokenize)
    app.post("/detokenize", dependencies=[KEY])(routes.detokenize)
    add_usage(app, settings.ledger, for_admins=control is not None)
    if control:
        add_admin(app, lineup, shadow, control.log, access)
    add_docs(app)
    if settings.live_view:
        add_view(app, Watchers(lineup, lineup.model))
    _handle_errors(app, has_admin=control is not None)
    describe(app)
    return app


def _handle_errors(app: FastAPI, *, has_admin: bool) -> None:
    def handler(
        to_api_error: Callable[[Request, Any], APIError],
    ) -> Callable[[Request, Exception], Awaitable[Response]]:
        async def handle(request: Request, error: Exception) -> Response:
            known = to_api_error(request, error)
            return Response(known.body, known.status, known.headers, media_type="application/json")

        return handle

    def framework(request: Request, error: HTTPException) -> APIError:
        if error.status_code == 400:  # the only one: it is raised where a body cannot be parsed
            return unreadable(error.__cause__)
        if error.status_code == 404:
            return no_such_path(request.url.path, has_admin=has_admin)
        if error.status_code == 405:
            return wrong_method(request.method, request.url.path, (error.headers or {})["Allow"])
        return APIError(error.status_code, str(error.detail))

    app.add_exception_handler(APIError, handler(lambda _, error: error))
    app.add_exception_handler(RequestValidationError, handler(lambda _, error: invalid(error.errors())))
    app.add_exception_handler(HTTPException, handler(framework))
