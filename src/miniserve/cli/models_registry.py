"""The registry, and who vouches for what is in it: most of `miniserve models`.

A registered model is called `registry:NAME`, or `registry:NAME@VERSION`, wherever a model is named; the registry is in
the directory MINISERVE_REGISTRY. A private key may be encrypted with the password MINISERVE_KEY_PASSWORD, which is
taken from the environment alone: a command line is for everybody on a machine to see. All run without torch.
"""

import getpass
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from miniserve.cli.models_shared import AsJson, Name, files_json, licence_of, on_disk, plain, print_table, size
from miniserve.errors import InvalidRequestError, ManifestError, ModelNotFoundError

if TYPE_CHECKING:
    from miniserve.model.sources.files import ModelFiles
    from miniserve.registry.version import Version

PASSWORD_VARIABLE = "MINISERVE_KEY_PASSWORD"
By = Annotated[str | None, typer.Option("--by", help="Who does it; default: the user of this machine.")]


def register(
    name: Annotated[str, typer.Argument(help="What it is called in the registry.", show_default=False)],
    source: Name,
    licence: Annotated[str | None, typer.Option(help="SPDX identifier; default: what is known of SOURCE.")] = None,
    card: Annotated[Path | None, typer.Option(help="A Markdown file; default: SOURCE's README.md.")] = None,
    origin: Annotated[str | None, typer.Option("--from", help="Where it is from; default: where SOURCE is.")] = None,
    by: By = None,
    parent: Annotated[str | None, typer.Option(help="NAME@VERSION that it was made from.")] = None,
    version: Annotated[str | None, typer.Option(help="Default: the next number.")] = None,
    as_json: AsJson = False,
) -> None:
    """Take a model into the registry, as a new version. It does not change any more."""
    from miniserve.model.sources.progress import byte_bar
    from miniserve.model.sources.resolve import REGISTERED
    from miniserve.registry.store import Registry
    from miniserve.registry.version import Provenance

    files = on_disk(source)
    licence = licence or licence_of(files)
    if not licence:
        raise InvalidRequestError(f"{source}: no licence is known of it: --licence says under which it may be used")
    made = Provenance(source=origin or _origin(files), by=by or getpass.getuser(), licence=licence, parent=parent)
    path = files.path if files.directory is None else files.directory
    total = path.stat().st_size if path.is_file() else sum(each.stat().st_size for each in path.iterdir())
    with byte_bar(True) as bar:
        task = bar.add_task(f"copy {files.name}", total=total)
        done = Registry().register(
            name,
            path,
            card=_card(card, path),
            provenance=made,
            version=version,
            on_bytes=lambda _, count: bar.advance(task, count),
        )
    typer.echo(json.dumps(_row(done)) if as_json else f"{REGISTERED}{done.reference}")


def versions(
    name: Annotated[str | None, typer.Argument(help="Of one model; default: of all.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """What is in the registry, oldest first. The last one of a name is what `registry:NAME` means."""
    from miniserve.model.sources.resolve import REGISTERED
    from miniserve.registry.store import Registry

    registry = Registry()
    names = registry.names() if name is None else [name.removeprefix(REGISTERED)]
    rows = [_row(version) for each in names for version in registry.versions(each)]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    columns = ("name", "registered", "by", "licence", "parent", "signed", "from")
    print_table(columns, [tuple(plain(row[column]) for column in columns) for row in rows])


def sign(
    name: Name,
    key: Annotated[Path, typer.Option(help="The private key (PEM) of `keygen`.", show_default=False)],
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Sign a version in the registry, or a model's directory. The latter gets a manifest if it has none."""
    from miniserve.model.sources.resolve import REGISTERED
    from miniserve.registry.keys import PrivateKey
    from miniserve.registry.manifest import MANIFEST, Manifest
    from miniserve.registry.signing import sign as sign_directory
    from miniserve.registry.store import Registry

    private = PrivateKey.read(key, os.environ.get(PASSWORD_VARIABLE))
    files = on_disk(name)
    if files.directory is None:
        raise InvalidRequestError(f"{files.path}: a file alone cannot be signed: register it first")
    with _writing(files.directory):
        if not (files.directory / MANIFEST).exists():
            Manifest.of(files.directory).write(files.directory)
        if name.startswith(REGISTERED):
            facts = {"model": files.name.removeprefix(REGISTERED), "key": private.public.fingerprint}
            Registry().audit.append(by or getpass.getuser(), "model.sign", **facts)
        signature = sign_directory(files.directory, private)
    told = {"name": files.name, "signature": str(signature), "key_sha256": private.public.fingerprint}
    typer.echo(json.dumps(told) if as_json else str(signature))


def verify(
    name: Name,
    key: Annotated[Path | None, typer.Option(help="A public key (PEM): its owner must have signed the model.")] = None,
    as_json: AsJson = False,
) -> None:
    """Read every file of a model, and check it. Manifest and signature, hashes on record elsewhere, or structure."""
    from miniserve.model.sources.progress import say
    from miniserve.model.sources.verify import verify as verify_files
    from miniserve.registry.manifest import SIGNATURE

    public = None
    if key:
        from miniserve.registry.keys import PublicKey

        public = PublicKey.read(key)
    files = on_disk(name)
    checks = verify_files(files, key=public)
    signed = files.directory is not None and (files.directory / SIGNATURE).is_file()
    if as_json:
        rows = [
            {"path": str(c.path), "size_bytes": c.size_bytes, "sha256": c.sha256, "expected_sha256": c.expected_sha256}
            for c in checks
        ]
        vouched = {"signed": signed, "verified_key_sha256": public.fingerprint if public else None}
        typer.echo(json.dumps(files_json(files) | vouched | {"files": rows}))
        return
    shown = [
        (c.path.name, size(c.size_bytes), "matches" if c.expected_sha256 else "none recorded", c.sha256) for c in checks
    ]
    print_table(("file", "size", "recorded hash", "sha256"), shown)
    if public:
        say(f"signed by the owner of the key with SHA-256 {public.fingerprint}")
    elif signed:
        say("there is a signature: --key says whose it must be")


def keygen(
    private: Annotated[Path, typer.Argument(help="Where the private key goes; its public half: PRIVATE.pub.")],
    as_json: AsJson = False,
) -> None:
    """Make a key to sign with (ECDSA, P-256). It is encrypted if MINISERVE_KEY_PASSWORD is set."""
    from miniserve.model.sources.progress import say
    from miniserve.registry.keys import make_keys

    public = private.with_name(f"{private.name}.pub")
    password = os.environ.get(PASSWORD_VARIABLE)
    made = make_keys(private, public, password)
    if not password:
        say(f"{private} is not encrypted: {PASSWORD_VARIABLE} was not set")
    told = {"private": str(private), "public": str(public), "key_sha256": made.fingerprint}
    typer.echo(json.dumps(told) if as_json else str(public))


def audit(
    log: Annotated[
        Path | None, typer.Argument(help="An audit log; default: the registry's.", show_default=False)
    ] = None,
    known: Annotated[str | None, typer.Option(help="A hash that was kept elsewhere: it must be in the log.")] = None,
    as_json: AsJson = False,
) -> None:
    """Who did what, after a look at the chain of hashes. The newest hash goes to stderr, to be kept elsewhere."""
    from miniserve.model.sources.progress import say
    from miniserve.registry.audit import AuditLog
    from miniserve.registry.store import Registry

    if log and not log.is_file():
        raise ModelNotFoundError(f"{log}: no such file")
    trail = AuditLog(log) if log else Registry().audit
    newest = trail.verify(known=known)
    records = trail.read()
    if as_json:
        typer.echo(json.dumps([asdict(record) for record in records]))
    else:
        shown = [(str(r.number), r.when, r.who, r.what, json.dumps(r.details)) for r in records]
        print_table(("number", "when", "who", "what", "details"), shown)
    say(f"whole; newest hash: {newest}")


def _row(version: "Version") -> dict[str, Any]:
    recorded = version.provenance
    return {
        "name": version.reference,
        "path": str(version.path),
        "registered": recorded.registered,
        "by": recorded.by,
        "licence": recorded.licence,
        "parent": recorded.parent,
        "from": recorded.source,
        "source_sha256": recorded.source_sha256,
        "manifest_sha256": version.manifest.sha256,
        "signed": version.is_signed,
    }


def _origin(files: "ModelFiles") -> str:
    """Where a model is from, in words; of the Hub's snapshots with the revision, which its folder is named by."""
    if re.fullmatch("[0-9a-f]{40}", files.path.name):
        return f"{files.source}, revision {files.path.name}"
    return f"{files.source}: {files.path.absolute()}" if files.source.startswith("local") else files.source


def _card(card: Path | None, source: Path) -> str:
    path = card or source / "README.md"
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        if card:
            raise ModelNotFoundError(f"{card}: no such file") from error
        raise InvalidRequestError(f"{source}: no README.md in it: --card names a file that says what it is") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{path}: no text that can be read: {error}") from error


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ManifestError(f"{directory}: cannot be written to: {error.strerror or error}") from error
