"""`Fields`: read a dictionary of unknown quality so that nothing in it goes unread.

Each value is taken by name with its expected type and range, required to have an inert value, or declared inert.
`finish()` then refuses whatever is left: a field nobody looked at is a feature that would be dropped in silence.
Errors name the file, the field and the value. Torch-free.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from miniserve.errors import CorruptFileError, UnsupportedModelError

MAX_JSON_BYTES = 64 * 2**20
_REQUIRED = object()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        CorruptFileError: absent, larger than 64 MiB, not UTF-8, not JSON, nested too deeply, or not an object.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise CorruptFileError(f"{path}: {size} bytes, more than the limit of {MAX_JSON_BYTES} for a JSON file")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CorruptFileError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise CorruptFileError(f"{path}: a JSON object was expected, found {type(value).__name__}")
    return value


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name before the message of an error from code that knows only values, not where they came from."""
    try:
        yield
    except UnsupportedModelError as error:
        if str(error).startswith(str(path)):
            raise
        raise UnsupportedModelError(f"{path}: {error}") from error


class Fields:
    """A mapping together with the file it came from and the set of fields already read."""

    def __init__(self, values: Mapping[str, Any], path: Path | str) -> None:
        self._values = values
        self._path = path
        self._unread = set(values)

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def get(self, name: str) -> Any:
        """The raw value or None, now counted as read."""
        self._unread.discard(name)
        return self._values.get(name)

    def integer(self, *names: str, default: Any = _REQUIRED) -> int:
        """The first present of `names` as an int. A whole float (32.0) is accepted, True is not."""
        name, value = self._first(names, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(name, value, "a whole number")
        if isinstance(value, float) and not value.is_integer():  # nor is infinity or NaN
            raise self._wrong(name, value, "a whole number")
        return int(value)

    def number(self, *names: str, default: Any = _REQUIRED) -> float:
        """The first present of `names` as a finite float."""
        name, value = self._first(names, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(name, value, "a number")
        try:
            number = float(value)
        except OverflowError as error:
            raise self._wrong(name, value, "a number") from error
        if not math.isfinite(number):
            raise self._wrong(name, value, "a finite number")
        return number

    def flag(self, *names: str, default: Any = _REQUIRED) -> bool:
        """The first present of `names` as a bool."""
        name, value = self._first(names, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def text(self, *names: str, default: Any = _REQUIRED) -> str:
        """The first present of `names` as a str."""
        name, value = self._first(names, default)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a string")
        return value

    def must_be(self, name: str, *allowed: Any, hint: str = "") -> None:
        """`name` is absent, null or one of `allowed`; anything else asks for what the decoder does not have.

        Raises:
            UnsupportedModelError: naming the field and its value.
        """
        value = self.get(name)
        if value is not None and not any(type(value) is type(ok) and value == ok for ok in allowed):
            wanted = " or ".join(repr(ok) for ok in allowed) or "absent"
            raise UnsupportedModelError(
                f"{self._path}: {name} = {_short(value)} is not supported, only {wanted}. {hint}".strip()
            )

    def inert(self, names: Iterable[str]) -> None:
        """These fields change nothing in what the decoder computes."""
        self._unread.difference_update(names)

    def inert_prefix(self, *prefixes: str) -> None:
        """Fields whose names begin so change nothing in what the decoder computes."""
        self._unread = {name for name in self._unread if not name.startswith(prefixes)}

    def finish(self) -> None:
        """Refuse what nobody read. A null or false value switches nothing on, and passes.

        Raises:
            UnsupportedModelError: naming the fields and their values.
        """
        left = {n: self._values[n] for n in sorted(self._unread) if self._values[n] not in (None, False)}
        if left:
            listing = ", ".join(f"{name} = {_short(value)}" for name, value in left.items())
            raise UnsupportedModelError(
                f"{self._path}: unknown field{'s' if len(left) > 1 else ''} {listing}. miniserve does not guess what "
                "an unknown field means; if it has no effect on inference, remove it from the file"
            )

    def _first(self, names: tuple[str, ...], default: Any) -> tuple[str, Any]:
        found = [(name, value) for name in names if (value := self.get(name)) is not None]
        if found:
            return found[0]
        if default is _REQUIRED:
            raise UnsupportedModelError(f"{self._path}: the field {' or '.join(names)} is missing")
        return names[0], default

    def _wrong(self, name: str, value: Any, wanted: str) -> CorruptFileError:
        return CorruptFileError(f"{self._path}: {name} should be {wanted}, found {_short(value)}")


def _short(value: Any) -> str:
    """A value as an error message can bear it: one line, at most 60 characters, whatever the file held."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
