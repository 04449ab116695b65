"""What the OpenAPI document says of responses.

FastAPI knows what requests look like from `protocol`. Responses are msgspec's structs, whose schemas are added here; so
are errors, of which it would promise another kind than `errors` makes.
"""

from typing import Any, cast

import msgspec
from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer

from miniserve.server.chat_replies import ChatChoice
from miniserve.server.errors import Error
from miniserve.server.replies import Body, TextChoice

_PLACE = "#/components/schemas/"
_REFERENCES, _COMPONENTS = msgspec.json.schema_components(
    (Error, Body[TextChoice], Body[ChatChoice]), ref_template=_PLACE + "{name}"
)
_ERROR, _TEXT, _CHAT = _REFERENCES


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _output(schema: dict[str, Any]) -> dict[str, Any]:
    events = {"text/event-stream": {"schema": {"type": "string"}}}
    return {"200": {"description": "Whole, or with `stream` as events.", "content": _json(schema) | events}}


# For a route's `responses`.
Responses = dict[int | str, dict[str, Any]]
ERRORS: Responses = {
    "4XX": {"description": "What is wrong with the request.", "content": _json(_ERROR)},
    "5XX": {"description": "The engine is not there, or died.", "content": _json(_ERROR)},
}
TEXT_OUTPUT = cast(Responses, _output(_TEXT))
CHAT_OUTPUT = cast(Responses, _output(_CHAT))
PLAIN_TEXT: Responses = {"200": {"description": "In Prometheus' format.", "content": {"text/plain": {}}}}

KEY = Depends(HTTPBearer(auto_error=False, description="An API key, if the server has any."))


def describe(app: FastAPI) -> None:
    """Have an application's document contain the schemas that its routes refer to."""
    without = app.openapi

    def openapi() -> dict[str, Any]:
        document = without()
        document["components"]["schemas"] |= _COMPONENTS
        return document

    app.openapi = openapi  # type: ignore[method-assign]
