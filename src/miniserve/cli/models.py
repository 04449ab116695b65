"""`miniserve models`: what can be had by a short name, what is on this disk, and whether it is whole.

Results go to stdout: a table on a terminal, tab-separated lines in a pipe, one JSON value with --json. Only `pull`
touches the network. `list`, `pull` and `verify` run without torch.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from miniserve.errors import ModelNotFoundError
from miniserve.model.sources.aliases import Alias, load_aliases
from miniserve.model.sources.embedded import Embedded, load_embedded

if TYPE_CHECKING:
    from miniserve.model.sources.files import ModelFiles

app = typer.Typer(help="List, fetch and inspect models.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Short name, directory, .gguf file, or org/name.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """Models with a short name, and Hub snapshots already on this disk."""
    from miniserve.model.sources.resolve import cached_hub_models

    rows = [_embedded_row(model) for model in load_embedded().values()]
    rows += [_alias_row(alias) for alias in load_aliases().values()]
    rows += [_hub_row(files) for files in cached_hub_models()]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    shown = [
        (r["name"], "yes" if r["cached"] else "no", _size(r["size_bytes"]), r["licence"] or "?", r["title"])
        for r in rows
    ]
    _print_table(("name", "cached", "size", "licence", "title"), shown)


@app.command()
def pull(name: Name, as_json: AsJson = False) -> None:
    """Fetch a model, unless it is here already, and print where it lies."""
    from miniserve.model.sources.resolve import resolve

    files = resolve(name)
    typer.echo(json.dumps(_files_json(files)) if as_json else str(files.path))


@app.command()
def verify(name: Name, as_json: AsJson = False) -> None:
    """Read every file of a model: hashes against the recorded ones, structure for the rest."""
    from miniserve.model.sources.verify import verify as verify_files

    files = _on_disk(name)
    checks = verify_files(files)
    if as_json:
        rows = [
            {"path": str(c.path), "size_bytes": c.size_bytes, "sha256": c.sha256, "expected_sha256": c.expected_sha256}
            for c in checks
        ]
        typer.echo(json.dumps(_files_json(files) | {"files": rows}))
        return
    shown = [
        (c.path.name, _size(c.size_bytes), "matches" if c.expected_sha256 else "none recorded", c.sha256)
        for c in checks
    ]
    _print_table(("file", "size", "recorded hash", "sha256"), shown)


@app.command()
def info(name: Name, as_json: AsJson = False) -> None:
    """What a model is: its shape, its tokenizer, its file. Reads no weights."""
    files = _on_disk(name)
    facts = _facts(files)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    readable = {key.replace("_", " "): _plain(value) for key, value in facts.items()}
    readable["size"] = _size(facts["size_bytes"])
    del readable["size bytes"]
    _print_table(("field", "value"), readable.items())


def _on_disk(name: str) -> "ModelFiles":
    """The model, never fetching it. Raises ModelNotFoundError."""
    from miniserve.model.sources.resolve import cached, resolve

    if files := cached(name):
        return files
    if name in load_aliases() or name.count("/") == 1:
        raise ModelNotFoundError(f"model '{name}' is not on this machine: fetch it with `miniserve models pull {name}`")
    return resolve(name, offline=True)  # raises, with all that is accepted


def _facts(files: "ModelFiles") -> dict[str, Any]:
    from miniserve.model.load import open_checkpoint

    checkpoint = open_checkpoint(files)
    config, tokenizer = checkpoint.config, checkpoint.tokenizer()
    moe = config.moe
    return {
        "name": files.name,
        "architecture": config.architecture,
        "parameters": config.num_parameters(),
        "layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "experts": moe.num_experts if moe else None,
        "experts_per_token": moe.experts_per_token if moe else None,
        "vocabulary": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "rope_theta": config.rope.theta,
        "rope_scaled": bool(config.rope.divisors),
        "tied_embeddings": config.tie_embeddings,
        "eos_ids": sorted(tokenizer.eos_token_ids),
        "chat_template": bool(tokenizer.chat_template),
        "kind": files.kind,
        "file": str(files.path),
        "size_bytes": _weight_bytes(files),
        "licence": _licence(files),
        "source": files.source,
    }


def _alias_row(alias: Alias) -> dict[str, Any]:
    return {
        "name": alias.name,
        "cached": alias.is_cached(),
        "size_bytes": alias.size_bytes,
        "licence": alias.licence,
        "title": alias.title,
        "description": alias.description,
        "origin": alias.origin,
        "path": str(alias.path),
    }


def _embedded_row(model: Embedded) -> dict[str, Any]:
    return {
        "name": model.name,
        "cached": True,
        "size_bytes": model.weights.stat().st_size,
        "licence": model.licence,
        "title": model.title,
        "description": model.description,
        "origin": "this package",
        "path": str(model.path),
    }


def _hub_row(files: "ModelFiles") -> dict[str, Any]:
    return {
        "name": files.name,
        "cached": True,
        "size_bytes": _weight_bytes(files),
        "licence": None,
        "title": files.source,
        "description": None,
        "origin": files.name,
        "path": str(files.path),
    }


def _files_json(files: "ModelFiles") -> dict[str, Any]:
    return {
        "name": files.name,
        "kind": files.kind,
        "path": str(files.path),
        "source": files.source,
        "size_bytes": _weight_bytes(files),
    }


def _weight_bytes(files: "ModelFiles") -> int:
    paths: Iterable[Path] = [files.path] if files.kind == "gguf" else files.path.glob("*.safetensors")
    return sum(path.stat().st_size for path in paths)


def _licence(files: "ModelFiles") -> str | None:
    """Only what our tables record; for anything else it stands in the model's card, which is not fetched."""
    known = {alias.path: alias.licence for alias in load_aliases().values()}
    known |= {model.path: model.licence for model in load_embedded().values()}
    return known.get(files.path)


def _size(size_bytes: int) -> str:
    from rich.filesize import decimal

    return decimal(size_bytes)


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def _print_table(columns: Sequence[str], rows: Iterable[tuple[str, ...]]) -> None:
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
