"""The routes of the live view, and of the API's documentation.

The pages are a few files that are read once and served from memory, so that no path of a request ever meets the file
system. Their policy lets a browser load from this server only, and run no script that is written into a page.
"""

import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import PurePath

from fastapi import FastAPI, Request
from starlette.responses import Response, StreamingResponse

from miniserve.server.errors import APIError
from miniserve.server.view.watchers import Watchers

MEDIA_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # asked for each time, and answered with 304 while it is the same
}
STATIC = {each.name: each.read_bytes() for each in (files(__package__) / "static").iterdir()}
OPEN_PATHS = frozenset(("/", "/docs", *(f"/view/{name}" for name in STATIC)))


def add_docs(app: FastAPI) -> None:
    """Serve the page about the API, and the files that pages are made of."""
    app.add_api_route("/docs", _page("docs.html"), include_in_schema=False)
    for name in STATIC:
        app.add_api_route(f"/view/{name}", _page(name), include_in_schema=False)


def add_view(app: FastAPI, watchers: Watchers) -> None:
    """Serve the live view, and the stream that it draws."""

    async def events(request: Request) -> Response:
        """What the live view draws, as server-sent events."""
        if not request.state.tenant.may_watch:
            raise APIError(403, "this key may not watch the engine", code="may_not_watch")
        watchers.check_room()
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(watchers.events(), media_type="text/event-stream", headers=headers)

    app.add_api_route("/", _page("index.html"), include_in_schema=False)
    app.add_api_route("/view/events", events, include_in_schema=False)


def _page(name: str) -> Callable[[Request], Awaitable[Response]]:
    body, tag = STATIC[name], f'"{hashlib.sha256(STATIC[name]).hexdigest()[:16]}"'

    async def page(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=HEADERS | {"etag": tag})
        return Response(body, media_type=MEDIA_TYPES[PurePath(name).suffix], headers=HEADERS | {"etag": tag})

    return page
