"""A KV block as a file: a header that says what it is, and its body.

    magic 8 | format 4 | payload bytes 4 | domain 32 | owner 16 | hash 32 | body

    body, format 2:  checksum 8 | payload
    body, format 3:  nonce 12 | the same, encrypted | tag 16

`domain` tells apart what must never be mistaken for another: other weights, sizes, types (see `KVLayout.digest`). Of an
encrypted file the header is readable, and bound to the body: under its key a file that differs in any bit is refused.

A file appears whole or not at all: it is written beside its place and renamed. It is not flushed to the disk (no
fsync): when power fails, what was written in the last seconds may be lost, or be there with zeros or a piece missing,
which the checksum tells. It is a cache: to lose a block costs its computation, to wait for the disk costs each save.
"""

import itertools
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np

from miniserve.kvstore.record import BlockKey, Record

MAGIC = b"msKVblk\n"
PLAIN, SEALED = 2, 3
_HEADER = struct.Struct("<8sII32s16s32s")
_CHECKSUM = struct.Struct("<Q")
HEADER_BYTES = _HEADER.size
SEAL_BYTES = 12 + 16
SUFFIX, PARTIAL, KEY_SUFFIX = ".kv", ".partial", ".key"

_numbers = itertools.count()


class Seals(Protocol):
    """Encrypts under one key; see `encryption.Cipher`."""

    def seal(self, parts: Sequence[bytes | memoryview], bound: bytes) -> tuple[bytes, memoryview]:
        """The nonce, and the encrypted parts with a tag, all of which goes with `bound` only."""
        ...

    def open(self, sealed: memoryview, bound: bytes) -> memoryview | None:
        """What was sealed, in its place; None if it is not what this key sealed with `bound`, bit by bit."""
        ...


def file_bytes(stored_bytes: int, *, sealed: bool) -> int:
    """The size of a file with a payload of so many bytes."""
    return HEADER_BYTES + _CHECKSUM.size + stored_bytes + (SEAL_BYTES if sealed else 0)


def write_block(path: Path, domain: bytes, record: Record, cipher: Seals | None = None) -> None:
    """Write a block to `path`, over whatever is there. Raises OSError as the system does, and leaves nothing then."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.{next(_numbers)}{PARTIAL}")
    header = _HEADER.pack(MAGIC, SEALED if cipher else PLAIN, len(record.payload), domain, *record.key)
    body: Sequence[bytes | memoryview] = _CHECKSUM.pack(record.checksum), record.payload.data
    if cipher:
        body = cipher.seal(body, header)
    try:
        with partial.open("xb", buffering=0) as file:
            for part in (header, *body):
                data, written = memoryview(part), 0
                while written < len(data):  # an unbuffered write may be short
                    written += file.write(data[written:])
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def read_block(
    path: Path, domain: bytes, key: BlockKey, stored_bytes: int, cipher: Seals | None = None
) -> Record | str:
    """The block in a file; or why it is not the one wanted, whole and sound. Raises OSError as the system does.

    With a cipher only an encrypted file will do, and without one only a file that is not.
    """
    size = file_bytes(stored_bytes, sealed=cipher is not None)
    data = np.empty(size + 1, np.uint8)  # one more, to see that the file ends
    read = 0
    with path.open("rb", buffering=0) as file:
        while read < len(data) and (count := file.readinto(data.data[read:])):
            read += count
    if read < HEADER_BYTES:
        return f"it has {read} bytes, less than a header"
    header = data[:HEADER_BYTES].tobytes()
    magic, version, length, its_domain, *its_key = _HEADER.unpack(header)
    wanted = SEALED if cipher else PLAIN
    if magic != MAGIC or version != wanted:
        return f"its header says {magic!r}, format {version}, not {MAGIC!r}, format {wanted}"
    if its_domain != domain or BlockKey(*its_key) != key:
        return "it is a block of another model or of other tokens"
    if length != stored_bytes or read != size:
        return f"it has {read} bytes, not {size}"
    body = data[HEADER_BYTES:size]
    if cipher:
        opened = cipher.open(body.data, header)
        if opened is None:
            return "it was changed, or encrypted with another key"
        body = np.frombuffer(opened, np.uint8)
    (checksum,) = _CHECKSUM.unpack(body[: _CHECKSUM.size].tobytes())
    record = Record(key, body[_CHECKSUM.size :], checksum)
    return record if record.is_sound else "its checksum differs"
