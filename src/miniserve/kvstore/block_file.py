"""A KV block as a file: a header that says what it is, and its payload.

    magic 8 | format 4 | payload bytes 4 | domain 32 | key 32 | checksum 8 | payload

`domain` tells apart what must never be mistaken for another: other weights, sizes, types (see `KVLayout.digest`).

A file appears whole or not at all: it is written beside its place and renamed. It is not flushed to the disk (no
fsync): when power fails, what was written in the last seconds may be lost, or be there with zeros or a piece missing,
which the checksum tells. It is a cache: to lose a block costs its computation, to wait for the disk costs each save.
"""

import itertools
import os
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np

from miniserve.core.hashing import BlockHash
from miniserve.kvstore.record import Record

MAGIC = b"msKVblk\n"
FORMAT = 1
_HEADER = struct.Struct("<8sII32s32sQ")
HEADER_BYTES = _HEADER.size
PARTIAL = ".partial"

_numbers = itertools.count()


def write_block(path: Path, domain: bytes, record: Record) -> None:
    """Write a block to `path`, over whatever is there. Raises OSError as the system does, and leaves nothing then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.{next(_numbers)}{PARTIAL}")
    header = _HEADER.pack(MAGIC, FORMAT, len(record.payload), domain, record.key, record.checksum)
    try:
        with partial.open("xb", buffering=0) as file:
            for data in (memoryview(header), record.payload.data):
                written = 0
                while written < len(data):  # an unbuffered write may be short
                    written += file.write(data[written:])
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def read_block(path: Path, domain: bytes, key: BlockHash, stored_bytes: int) -> Record | str:
    """The block in a file; or why it is not the one wanted, whole and sound. Raises OSError as the system does."""
    data = np.empty(HEADER_BYTES + stored_bytes + 1, np.uint8)  # one more, to see that the file ends
    read = 0
    with path.open("rb", buffering=0) as file:
        while read < len(data) and (count := file.readinto(data.data[read:])):
            read += count
    if read < HEADER_BYTES:
        return f"it has {read} bytes, less than a header"
    magic, version, length, its_domain, its_key, checksum = _HEADER.unpack(data[:HEADER_BYTES].tobytes())
    if magic != MAGIC or version != FORMAT:
        return f"its header says {magic!r}, version {version}, not {MAGIC!r}, version {FORMAT}"
    if its_domain != domain or its_key != key:
        return "it is a block of another model or of other tokens"
    if length != stored_bytes or read != HEADER_BYTES + stored_bytes:
        return f"it has {read} bytes, not {HEADER_BYTES + stored_bytes}"
    record = Record(key, data[HEADER_BYTES : HEADER_BYTES + stored_bytes], checksum)
    return record if record.is_sound else "its checksum differs"
