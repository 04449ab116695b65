"""Errors as the OpenAI API words them: `{"error": {"message", "type", "param", "code"}}`, with a fitting status.

Whatever goes wrong with a request becomes an `APIError`; the client's libraries turn the status back into exceptions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

# Parameters of the OpenAI API that this server knows of and does not have.
UNSUPPORTED = frozenset((
    "audio", "best_of", "function_call", "functions", "metadata", "modalities", "prediction", "prompt_cache_key",
    "reasoning_effort", "safety_identifier", "service_tier", "store", "suffix", "verbosity", "web_search_options",
))  # fmt: skip


class ErrorDetail(Struct):
    """What is wrong: for people; its kind; the field that is to blame; for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(Struct):
    """The body of a response that is an error."""

    error: ErrorDetail


class APIError(Exception):
    """A request ends with an error.

    Args:
        status: of HTTP.
        message: for the person who sent it.
        param: the request's field that is to blame.
        code: for programs.
        headers: to send along.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> bytes:
        """JSON."""
        kind = "server_error" if self.status >= 500 else _KINDS.get(self.status, "invalid_request_error")
        return msgspec.json.encode(Error(ErrorDetail(self.message, kind, self.param, self.code)))


class EngineDiedError(APIError):
    """An engine died while it worked on the request."""

    def __init__(self) -> None:
        super().__init__(500, "the engine died while it worked on this request; it is being started again")


_KINDS = {401: "authentication_error", 429: "rate_limit_error"}


def busy(message: str, retry_after_s: int = 1) -> APIError:
    """Too much to do; come again."""
    return APIError(429, message, code="rate_limit_exceeded", headers={"retry-after": str(retry_after_s)})


def unavailable(message: str) -> APIError:
    """The engine is starting, or the server is stopping."""
    return APIError(503, message, code="unavailable", headers={"retry-after": "1"})


def invalid(errors: Sequence[Any]) -> APIError:
    """From what pydantic found wrong with a body: what it found deepest, which is where a choice of types fits best.

    Args:
        errors: as `ValidationError.errors()` gives them.
    """
    error = max(errors, key=lambda each: len(each["loc"]))
    kind, place = error["type"], [str(part) for part in error["loc"] if part != "body"]
    if kind == "json_invalid":
        return APIError(400, f"the body is not valid JSON: {error['ctx']['error']}", code="invalid_json")
    if not place:
        message = "the body must be a JSON object, sent with content-type: application/json"
        return APIError(400, message, code="invalid_json")
    param = place[0]
    if kind == "extra_forbidden" and len(place) == 1:
        known = param in UNSUPPORTED
        message = f"{param} is not supported" if known else f"{param} is not a parameter of this endpoint"
        return APIError(400, message, param=param, code="unsupported_parameter" if known else "unknown_parameter")
    path = ".".join(place)
    reason = error["msg"].removeprefix("Value error, ")
    return APIError(400, f"{path}: {reason}", param=param, code="invalid_value")
