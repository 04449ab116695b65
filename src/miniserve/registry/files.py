"""Bytes: one way to write JSON, hashes of files, files that are written whole or not at all."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

_CHUNK_BYTES = 1 << 20


def canonical_json(value: Any) -> bytes:
    """The one way a value is written here: keys sorted, no spaces, ASCII.

    Raises:
        TypeError, ValueError: JSON cannot hold it, or it is not a finite number.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def sha256_of(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file, in hexadecimal; `on_bytes` hears of every chunk read."""
    with path.open("rb") as file:
        return sha256_of_open(file, on_bytes)


def sha256_of_open(file: BinaryIO, on_bytes: Callable[[int], None] | None = None) -> str:
    """The same of an open file, from where it stands."""
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
        if on_bytes:
            on_bytes(len(chunk))
    return digest.hexdigest()


def copy_hashed(source: Path, target: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """Copy a file to one that is not there yet, and lasts. It is read once: the SHA-256 is that of what was copied."""
    digest = hashlib.sha256()
    with source.open("rb") as read, target.open("xb") as written:
        while chunk := read.read(_CHUNK_BYTES):
            digest.update(chunk)
            written.write(chunk)
            if on_bytes:
                on_bytes(len(chunk))
        written.flush()
        os.fsync(written.fileno())
    return digest.hexdigest()


def write_whole(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write or replace a file; whoever reads it finds the old content or the new, also after a power failure."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(mode)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory last; where the system knows no such thing, nothing."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
