"""`Manifest`: which files a model consists of, with the size and the SHA-256 of each; `manifest.json` beside them.

It lists every file of the directory but itself and the signature; there are no folders in it and no links. It is
canonical JSON and has a SHA-256 over its list, so that one flipped bit in it is told from one in a file. That hash is
no protection against somebody who alters both: a signature is (`signing`).

A check reads each file once, and gives what the system says of the files that were hashed: `unchanged` asks again,
later, whether they are still those.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from miniserve.errors import (
    AlteredFileError,
    AlteredTokenizerError,
    AlteredWeightsError,
    ExtraFileError,
    InvalidRequestError,
    ManifestError,
    MissingFileError,
    RefusedModelError,
)
from miniserve.registry.accepted import Role, role_of
from miniserve.registry.files import canonical_json, sha256_of, sha256_of_open, write_whole

MANIFEST, SIGNATURE = "manifest.json", "model.sig"
FORMAT = 1
_ALTERED = {Role.WEIGHTS: AlteredWeightsError, Role.TOKENIZER: AlteredTokenizerError}


class Entry(NamedTuple):
    """What is on record of one file; `sha256` in hexadecimal."""

    size_bytes: int
    sha256: str


class Stamp(NamedTuple):
    """What the system says of a file: changed whenever it is written to, or another is put in its place."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> "Stamp":
        """From `os.stat` or `os.fstat`."""
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@dataclass(frozen=True)
class Checked:
    """A model that is as its manifest says. Stamps say of when that holds: of its files and, as ".", its directory."""

    directory: Path
    manifest: "Manifest"
    stamps: Mapping[str, Stamp]

    def unchanged(self) -> None:
        """Raise AlteredFileError if a file has been written to or replaced since it was hashed."""
        for name, stamp in self.stamps.items():
            try:
                now = Stamp.of((self.directory / name).stat())
            except OSError:
                now = None
            if now != stamp:
                raise AlteredFileError(f"{self.directory / name}: written to or replaced since it was verified")


@dataclass(frozen=True)
class Manifest:
    """The files of a model, by name. Names are of files beside each other.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from miniserve.registry.manifest import Manifest
        >>> with TemporaryDirectory() as folder:
        ...     config = Path(folder, "config.json")
        ...     _ = config.write_text("{}")
        ...     manifest = Manifest.of(config.parent)
        ...     _ = config.write_text("[]")
        ...     manifest.check(config.parent)
        Traceback (most recent call last):
            ...
        miniserve.errors.AlteredFileError: ...config.json: altered (configuration): ...
    """

    files: Mapping[str, Entry]

    @property
    def sha256(self) -> str:
        """Over the list, in hexadecimal: the same for the same files, wherever they lie."""
        return hashlib.sha256(canonical_json(self._table())).hexdigest()

    def to_bytes(self) -> bytes:
        """The content of `manifest.json`."""
        return canonical_json({"format": FORMAT, "files": self._table(), "sha256": self.sha256}) + b"\n"

    def _table(self) -> dict[str, dict[str, int | str]]:
        return {name: entry._asdict() for name, entry in self.files.items()}

    @classmethod
    def of(cls, directory: Path) -> "Manifest":
        """Of the files that lie there now. Raises UnsafeWeightsError for one that a model may not have."""
        names = _names(directory)
        for name in names:
            role_of(name)
        return cls({name: Entry((directory / name).stat().st_size, sha256_of(directory / name)) for name in names})

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """From `manifest.json` there. Raises ManifestError if there is none, or it is not as it was written."""
        return cls.parse(manifest_bytes(directory), directory)

    @classmethod
    def parse(cls, content: bytes, directory: Path) -> "Manifest":
        """From what `manifest_bytes` of that directory gave. Raises ManifestError if it is not as it was written."""
        try:
            table = json.loads(content)["files"]
            manifest = cls({name: Entry(**fields) for name, fields in table.items()})
            whole = manifest.to_bytes() == content
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            whole = False
        if not whole:
            raise ManifestError(f"{directory / MANIFEST}: the manifest was altered: it is not as it was written")
        return manifest

    def write(self, directory: Path) -> None:
        """Write `manifest.json` there."""
        write_whole(directory / MANIFEST, self.to_bytes(), 0o444)

    def check(self, directory: Path, *, on_bytes: Callable[[str, int], None] | None = None) -> Checked:
        """Read every file in `directory`, several at a time, and hold it against this list.

        Args:
            directory: where they lie.
            on_bytes: hears of what is read, in several threads: of which file, and how many bytes.

        Raises:
            UnsafeWeightsError: there is a file that a model may not have.
            ExtraFileError, MissingFileError: there is one that is not listed, or a listed one is not there.
            AlteredWeightsError, AlteredTokenizerError, AlteredFileError: one has another content.
        """
        found = _names(directory)
        stamps = {".": Stamp.of(directory.stat())}
        for name in found:
            role_of(name)
        if extra := sorted(set(found) - set(self.files)):
            raise ExtraFileError(f"{directory}: {', '.join(extra)}: not in its manifest")
        if missing := sorted(set(self.files) - set(found)):
            raise MissingFileError(f"{directory}: {', '.join(missing)}: in its manifest, and not there")

        def check_one(name: str) -> Stamp:
            return _check_file(directory / name, self.files[name], on_bytes and partial(on_bytes, name))

        names = sorted(self.files)
        with ThreadPoolExecutor(max(1, min(len(names), os.cpu_count() or 1))) as threads:  # hashing frees Python's lock
            stamps |= zip(names, threads.map(check_one, names), strict=True)
        return Checked(directory, self, stamps)


def manifest_bytes(directory: Path) -> bytes:
    """The content of `manifest.json` there. Raises ManifestError if there is none."""
    try:
        return (directory / MANIFEST).read_bytes()
    except OSError as error:
        raise ManifestError(
            f"{directory}: no {MANIFEST} that can be read, so there is nothing to hold its files against"
        ) from error


def _check_file(path: Path, entry: Entry, on_bytes: Callable[[int], None] | None) -> Stamp:
    role = role_of(path.name)
    altered = _ALTERED.get(role, AlteredFileError)
    try:
        with path.open("rb") as file:  # one opening: what is hashed is what the stamp is of
            stamp = Stamp.of(os.fstat(file.fileno()))
            if stamp.size_bytes != entry.size_bytes:
                raise altered(
                    f"{path}: altered ({role}): it has {stamp.size_bytes} bytes, and its manifest says "
                    f"{entry.size_bytes}"
                )
            digest = sha256_of_open(file, on_bytes)
            if Stamp.of(os.fstat(file.fileno())) != stamp:
                raise altered(f"{path}: altered ({role}): written to while it was read")
    except OSError as error:
        raise RefusedModelError(f"{path}: cannot be read ({error.strerror or error})") from error
    if digest != entry.sha256:
        raise altered(f"{path}: altered ({role}): its SHA-256 is {digest}, and its manifest says {entry.sha256}")
    return stamp


def _names(directory: Path) -> list[str]:
    """Every file there but the manifest and the signature; for a registered model there are no folders or links."""
    if not directory.is_dir():
        raise InvalidRequestError(f"{directory}: not a directory; a model alone in a file is registered first")
    names = []
    for path in sorted(directory.iterdir()):
        if path.name in {MANIFEST, SIGNATURE}:
            continue
        if path.is_symlink() or not path.is_file():
            raise ExtraFileError(f"{path}: a folder or a link, where only the files of a model may lie")
        names.append(path.name)
    return names
