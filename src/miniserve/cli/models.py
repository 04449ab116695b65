"""`miniserve models`: what can be had by a short name, what is here, what is registered, and whether it is whole.

Results go to stdout: a table on a terminal, tab-separated lines in a pipe, one JSON value with --json. Only `pull`
touches the network. Only `info` needs torch.
"""

import json
from typing import TYPE_CHECKING, Any

import typer

from miniserve.cli import models_registry
from miniserve.cli.models_shared import (
    AsJson,
    Name,
    files_json,
    licence_of,
    on_disk,
    plain,
    print_table,
    size,
    weight_bytes,
)

if TYPE_CHECKING:
    from miniserve.model.sources.aliases import Alias
    from miniserve.model.sources.embedded import Embedded
    from miniserve.model.sources.files import ModelFiles
    from miniserve.registry.version import Version

app = typer.Typer(help="List, fetch and inspect models.", no_args_is_help=True)

for command in (
    models_registry.register,
    models_registry.versions,
    models_registry.sign,
    models_registry.verify,
    models_registry.keygen,
    models_registry.audit,
):
    app.command()(command)


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """Models by short name, in the registry, and on this disk. Of each in the registry the newest version."""
    from miniserve.model.sources.aliases import load_aliases
    from miniserve.model.sources.embedded import load_embedded
    from miniserve.model.sources.resolve import cached_hub_models
    from miniserve.registry.store import Registry

    registry = Registry()
    rows = [_embedded_row(model) for model in load_embedded().values()]
    rows += [_alias_row(alias) for alias in load_aliases().values()]
    rows += [_registered_row(registry.find(name)) for name in registry.names()]
    rows += [_hub_row(files) for files in cached_hub_models()]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    shown = [
        (r["name"], "yes" if r["cached"] else "no", size(r["size_bytes"]), r["licence"] or "?", r["title"])
        for r in rows
    ]
    print_table(("name", "cached", "size", "licence", "title"), shown)


@app.command()
def pull(name: Name, as_json: AsJson = False) -> None:
    """Fetch a model, unless it is here, and print where it lies."""
    from miniserve.model.sources.resolve import resolve

    files = resolve(name)
    typer.echo(json.dumps(files_json(files)) if as_json else str(files.path))


@app.command()
def info(name: Name, as_json: AsJson = False) -> None:
    """What a model is: its shape, its tokenizer, its file. Reads no weights."""
    files = on_disk(name)
    facts = _facts(files)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    readable = {key.replace("_", " "): plain(value) for key, value in facts.items()}
    readable["size"] = size(facts["size_bytes"])
    del readable["size bytes"]
    print_table(("field", "value"), readable.items())


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
        "size_bytes": weight_bytes(files),
        "licence": licence_of(files),
        "source": files.source,
    }


def _alias_row(alias: "Alias") -> dict[str, Any]:
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


def _embedded_row(model: "Embedded") -> dict[str, Any]:
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


def _registered_row(version: "Version") -> dict[str, Any]:
    files = on_disk(f"registry:{version.reference}")
    return {
        "name": files.name,
        "cached": True,
        "size_bytes": weight_bytes(files),
        "licence": version.provenance.licence,
        "title": version.provenance.source,
        "description": None,
        "origin": files.source,
        "path": str(files.path),
    }


def _hub_row(files: "ModelFiles") -> dict[str, Any]:
    return {
        "name": files.name,
        "cached": True,
        "size_bytes": weight_bytes(files),
        "licence": None,
        "title": files.source,
        "description": None,
        "origin": files.name,
        "path": str(files.path),
    }
