"""Errors as the OpenAI API words them: `{"error": {"message", "type", "param", "code"}}`, with a fitting status.

Whatever goes wrong with a request becomes an `APIError`; the client's libraries turn the status back into exceptions.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

ADMIN_PREFIX = "/admin"

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


def no_such_path(path: str, *, has_admin: bool) -> APIError:
    """There is no route, with what a person can do about it."""
    needs_admin = path.startswith(f"{ADMIN_PREFIX}/") and not has_admin
    hint = ": it needs --models and --admin-keys-file" if needs_admin else "; /docs has what there is"
    return APIError(404, f"there is no {path} here{hint}")


def wrong_method(method: str, path: str, allowed: str) -> APIError:
    """There is a route, of other methods."""
    return APIError(405, f"{path} does not take {method}, only {allowed}", headers={"allow": allowed})


def unreadable(cause: BaseException | None) -> APIError:
    """A body that cannot be read as JSON at all."""
    reason = "it is nested too deeply" if isinstance(cause, RecursionError) else str(cause)
    return APIError(400, f"the body is not valid JSON: {reason}", code="invalid_json")


def invalid(errors: Sequence[Any]) -> APIError:
    """From what pydantic found wrong with a body: what it found deepest, which is where a choice of types fits best.

    Args:
        errors: as `ValidationError.errors()` gives them.
    """
    error = max(errors, key=lambda each: len(each["loc"]))
    kind, place = error["type"], _place(error)
    if kind == "json_invalid":
        return APIError(
            400, f"the body is not valid JSON: {error['ctx']['error']}, at character {place[0]}", code="invalid_json"
        )
    if not place:
        message = "the body must be a JSON object, sent with content-type: application/json"
        return APIError(400, message, code="invalid_json")
    param = place[0]
    if kind == "extra_forbidden" and len(place) == 1:
        known = param in UNSUPPORTED
        message = f"{param} is not supported" if known else f"{param} is not a parameter of this endpoint"
        return APIError(400, message, param=param, code="unsupported_parameter" if known else "unknown_parameter")
    same = [each["msg"] for each in errors if len(each["loc"]) == len(error["loc"]) and _place(each) == place]
    choices = dict.fromkeys(each.removeprefix(_SHOULD_BE) for each in same if each.startswith(_SHOULD_BE))
    reason = _SHOULD_BE + " or ".join(choices) if choices else same[0].removeprefix("Value error, ")
    return APIError(400, f"{'.'.join(place)}: {reason}", param=param, code="invalid_value")


_SHOULD_BE = "Input should be "


def _place(error: Any) -> list[str]:
    """Where in the body, without pydantic's names for the kinds that a value might have been of."""
    field, *inner = [str(part) for part in error["loc"] if part != "body"] or [""]
    return [part for part in (field, *inner) if part and not re.fullmatch(r"str|\w+\[.*\]|[A-Z]\w*", part)]
