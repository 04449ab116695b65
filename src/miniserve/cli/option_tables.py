"""Options in tables: a frozen dataclass whose fields are options of a command, which takes the table as one parameter.

typer reads a command's options from its signature, so that is what is made.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any


def with_tables(**tables: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """For a command: options for each field of its parameters that are named here, after its own.

    Args:
        tables: dataclasses, whose fields have `typer.Option` in their annotations and a default.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            made = {
                name: table(**{field.name: given.pop(field.name) for field in fields(table)})
                for name, table in tables.items()
            }
            command(**given, **made)

        own = [each for name, each in inspect.signature(command).parameters.items() if name not in tables]
        theirs = [each for table in tables.values() for each in inspect.signature(table).parameters.values()]
        run.__signature__ = inspect.Signature([each.replace(kind=each.KEYWORD_ONLY) for each in (*own, *theirs)])  # type: ignore[attr-defined]
        return run

    return decorate
