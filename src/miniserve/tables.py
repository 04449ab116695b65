"""Tables, as TOML has them, to and from frozen dataclasses: strictly. What is not known is refused by its name.

`read_toml` reads a file. Of fields there may be numbers, texts, truth values, other dataclasses and tuples of these;
`None` stands for what is not in the table. A whole number will do where another number is wanted.
"""

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from miniserve.errors import CorruptFileError, InvalidRequestError

T = TypeVar("T")
KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def read_toml(path: Path) -> dict[str, Any]:
    """A file's values. Raises CorruptFileError where there are none: names the file, and the line if it can.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from miniserve.simulate.scenario import Engines, Scenario
        >>> from miniserve.tables import read_toml
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder, "scenario.toml")
        ...     _ = file.write_text(Scenario("qwen3-8b", (Engines("h100"),)).to_toml())
        ...     Scenario.from_table(read_toml(file)).engines[0].hardware
        'h100'
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CorruptFileError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise CorruptFileError(f"{path} cannot be read as TOML: {error}") from error


def from_table(cls: type[T], table: Mapping[str, Any], where: str = "") -> T:
    """A dataclass from its fields.

    Args:
        cls: the dataclass.
        table: its fields by name; those with a default may be absent.
        where: its place, for errors.

    Raises:
        InvalidRequestError: a key is unknown or missing, or a value is of another kind. Names the key with its place.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for name in table:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            instead = f"; did you mean '{near[0]}'?" if near else f"; there is {', '.join(fields)}"
            raise InvalidRequestError(f"unknown key '{_path(where, name)}'{instead}")
    for name, field in fields.items():
        if name not in table and field.default is field.default_factory is dataclasses.MISSING:
            raise InvalidRequestError(f"'{_path(where, name)}' is missing")
    return cls(**{name: _value(hints[name], value, _path(where, name)) for name, value in table.items()})


def to_table(instance: Any) -> dict[str, Any]:
    """Its fields by name, but for those that are as they would be anyway."""
    table = {}
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if value != default:
            table[field.name] = _plain(value)
    return table


def to_toml(table: Mapping[str, Any]) -> str:
    """A table as TOML, plain values first."""
    return "\n".join(_lines(table, ())).strip() + "\n"


def _path(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _value(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType):  # of one kind and None
        hint = next(each for each in typing.get_args(hint) if each is not type(None))
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise InvalidRequestError(f"'{where}' is {_shown(value)}: it must be a list of tables, [[{where}]]")
        return tuple(_value(typing.get_args(hint)[0], each, f"{where}[{at}]") for at, each in enumerate(value))
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise InvalidRequestError(f"'{where}' is {_shown(value)}: it must be a table, [{where}]")
        return from_table(typing.cast(type[Any], hint), value, where)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise InvalidRequestError(f"'{where}' is {_shown(value)}: it must be {KINDS[hint]}")
    return value


def _shown(value: Any) -> str:
    return repr(value)[:60]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_table(value)
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _literal(value: Any) -> str:
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # all else that TOML escapes, JSON does


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterable[str]:
    inner = {name: value for name, value in table.items() if isinstance(value, Mapping | list)}
    for name, value in table.items():
        if name not in inner:
            yield f"{name} = {_literal(value)}"
    for name, value in inner.items():
        heading = ".".join((*path, name))
        for each in value if isinstance(value, list) else [value]:
            yield f"\n[[{heading}]]" if isinstance(value, list) else f"\n[{heading}]"
            yield from _lines(each, (*path, name))
