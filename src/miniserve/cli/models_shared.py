"""What the commands of `miniserve models` share: finding a model on this disk, and telling of it."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from miniserve.cli.loading import MODEL_HELP
from miniserve.errors import ModelNotFoundError

if TYPE_CHECKING:
    from miniserve.model.sources.files import ModelFiles

Name = Annotated[str, typer.Argument(help=MODEL_HELP, show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]


def on_disk(name: str) -> "ModelFiles":
    """The model, never fetching it. Raises ModelNotFoundError."""
    from miniserve.model.sources.aliases import load_aliases
    from miniserve.model.sources.resolve import cached, resolve

    if files := cached(name):
        return files
    if name in load_aliases() or name.count("/") == 1:
        raise ModelNotFoundError(f"model '{name}' is not on this machine: fetch it with `miniserve models pull {name}`")
    return resolve(name, offline=True)  # raises, with all that is accepted


def files_json(files: "ModelFiles") -> dict[str, Any]:
    """What is said of a model as JSON."""
    return {
        "name": files.name,
        "kind": files.kind,
        "path": str(files.path),
        "source": files.source,
        "size_bytes": weight_bytes(files),
    }


def weight_bytes(files: "ModelFiles") -> int:
    """Of all its weights, on disk."""
    paths: Iterable[Path] = [files.path] if files.kind == "gguf" else files.path.glob("*.safetensors")
    return sum(path.stat().st_size for path in paths)


def licence_of(files: "ModelFiles") -> str | None:
    """What our tables and the registry record; for others it stands in the model's card, which is not fetched."""
    from miniserve.model.sources.aliases import load_aliases
    from miniserve.model.sources.embedded import load_embedded
    from miniserve.model.sources.resolve import REGISTERED
    from miniserve.registry.store import Registry

    if files.name.startswith(REGISTERED):
        return Registry().find(files.name.removeprefix(REGISTERED)).provenance.licence
    known = {alias.path: alias.licence for alias in load_aliases().values()}
    known |= {model.path: model.licence for model in load_embedded().values()}
    return known.get(files.path)


def size(size_bytes: int) -> str:
    """For people: 98.4 MB."""
    from rich.filesize import decimal

    return decimal(size_bytes)


def plain(value: Any) -> str:
    """A value for people."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def print_table(columns: Sequence[str], rows: Iterable[tuple[str, ...]]) -> None:
    """On a terminal a table, else lines of values between tabs."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            typer.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")  # a hash or a path is never cut short
    for row in rows:
        table.add_row(*map(Text, row))  # as Text: brackets in a name are not markup
    Console().print(table)
