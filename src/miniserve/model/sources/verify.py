"""Is a model on this disk the one it should be? Reads every byte of it; changes nothing. Torch-free."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from miniserve.errors import ChecksumError, CorruptFileError, TensorError, UnsignedModelError
from miniserve.model.gguf import GGUFFile
from miniserve.model.shards import INDEX, read_header, read_index
from miniserve.model.sources.aliases import Alias, load_aliases
from miniserve.model.sources.embedded import load_embedded
from miniserve.model.sources.files import ModelFiles
from miniserve.model.sources.progress import byte_bar
from miniserve.registry.files import sha256_of
from miniserve.registry.manifest import MANIFEST, Manifest

if TYPE_CHECKING:
    from miniserve.registry.keys import PublicKey


@dataclass(frozen=True)
class FileCheck:
    """What `verify` found for one file; `expected_sha256` is None where nobody recorded one."""

    path: Path
    size_bytes: int
    sha256: str
    expected_sha256: str | None


def verify(
    files: ModelFiles,
    *,
    key: "PublicKey | None" = None,
    progress: bool = True,
    aliases: Mapping[str, Alias] | None = None,
) -> tuple[FileCheck, ...]:
    """Read every file of a model and check what can be checked without running it.

    A model with a manifest is held against it, and with a `key` against its owner's signature. Of others the SHA-256
    of a file is compared where one is on record: an alias's in `aliases`, the weights' of a model in this package in
    `embedded.toml`, a Hub file's in the name of its blob. Safetensors headers must parse and match the file's length,
    and hold every tensor that an index promises.

    Raises:
        RefusedModelError: one of its subclasses: it is not as its manifest or the signature says, or there is none.
        ChecksumError: a file is not the recorded one.
        CorruptFileError: a file is missing, truncated or not what its name says.
        TensorError: an index names a tensor that its file does not hold.
    """
    if files.directory and (key or (files.directory / MANIFEST).is_file()):
        return _verify_registered(files.directory, key, progress)
    if key:
        raise UnsignedModelError(f"{files.path}: a file alone has no signature: register it, or give its directory")
    paths = [files.path] if files.kind == "gguf" else sorted(p for p in files.path.iterdir() if p.is_file())
    alias = next((a for a in (aliases or load_aliases()).values() if a.path == files.path), None)
    embedded = {each.weights: each.sha256 for each in load_embedded().values()}
    checks = []
    with byte_bar(progress) as bar:
        for path in paths:
            expected = alias.sha256 if alias else embedded.get(path) or recorded_sha256(path)
            try:
                size = path.stat().st_size
                task = bar.add_task(f"verify {path.name}", total=size)
                digest = sha256_of(path, partial(bar.advance, task))
            except OSError as error:
                raise CorruptFileError(f"{path}: cannot be read ({error.strerror or error})") from error
            if expected not in {None, digest}:
                raise ChecksumError(f"{path}: SHA-256 is {digest}, expected {expected}; delete the file and pull again")
            _check_structure(path)
            checks.append(FileCheck(path, size, digest, expected))
    return tuple(checks)


def _verify_registered(directory: Path, key: "PublicKey | None", progress: bool) -> tuple[FileCheck, ...]:
    size = sum(path.stat().st_size for path in directory.iterdir())
    with byte_bar(progress) as bar:
        task = bar.add_task(f"verify {directory.name}", total=size)

        def on_bytes(_: str, count: int) -> None:
            bar.advance(task, count)

        if key:
            from miniserve.registry.signing import verify as verify_signed

            checked = verify_signed(directory, key, on_bytes=on_bytes)
        else:
            checked = Manifest.read(directory).check(directory, on_bytes=on_bytes)
    for name in checked.manifest.files:
        _check_structure(directory / name)
    return tuple(
        FileCheck(directory / name, entry.size_bytes, entry.sha256, entry.sha256)
        for name, entry in sorted(checked.manifest.files.items())
    )


def _check_structure(path: Path) -> None:
    """Raise CorruptFileError or TensorError unless a safetensors, index or GGUF file holds together."""
    if path.suffix == ".safetensors":
        read_header(path)
    elif path.suffix == ".gguf":
        GGUFFile(path)
    elif path.name == INDEX:
        index = read_index(path)
        for shard in sorted(set(index.values())):
            wanted = {tensor for tensor, file in index.items() if file == shard}
            if missing := sorted(wanted - set(read_header(path.parent / shard))):
                raise TensorError(f"{path.parent / shard}: no tensor {missing[0]!r}, which {path.name} puts there")


def recorded_sha256(path: Path) -> str | None:
    """What the Hub says a file's SHA-256 is, if it does.

    Its cache names the blob of a large file by its SHA-256, and the snapshot links to it.
    """
    blob = path.resolve().name
    return blob if path.is_symlink() and re.fullmatch("[0-9a-f]{64}", blob) else None
