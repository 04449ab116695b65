"""`miniserve kv`: the disk tier's directory, without an engine."""

from pathlib import Path
from typing import Annotated

import typer

from miniserve.errors import InvalidRequestError, MiniserveError

app = typer.Typer(help="KV in the directory of --kv-disk.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """So that `delete` is a command of its own, though it is the only one."""


@app.command()
def delete(
    kv_disk: Annotated[Path, typer.Option(help="The directory.", exists=True, file_okay=False)],
    api_keys_file: Annotated[Path, typer.Option(help="TOML: the keys, with the tenant's among them.")],
    tenant: Annotated[str, typer.Option(help="Its name there.")],
) -> None:
    """Delete a tenant's KV, of every model. Servers that run keep what they have in memory: ask those by /admin."""
    try:
        from miniserve.server.keys_file import read_keys
    except ImportError as error:
        raise MiniserveError(f"keys need {error.name}: pip install 'miniserve[serve]'") from error
    from miniserve.kvstore.deletion import delete_owner
    from miniserve.kvstore.record import owner_of

    salts = [each.cache_salt for each in read_keys(api_keys_file) if each.name == tenant]
    if not salts:
        raise InvalidRequestError(f"{api_keys_file} has no tenant {tenant!r}")
    try:
        count = delete_owner(kv_disk, owner_of(salts[0]))
    except OSError as error:
        raise MiniserveError(f"not all of {tenant}'s KV could be deleted: {error}") from error
    typer.echo(f"{count} blocks of {tenant} deleted")
