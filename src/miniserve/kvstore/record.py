"""A KV block in a tier: its bytes, and a checksum that was taken when they came and goes with them from tier to tier.

Whoever takes a block out of a tier compares, so that bytes which changed on the way, in memory or on disk, are a miss
and never somebody's past. XXH3 finds accidents (a flipped bit in a block of any size) at the speed of memory; it is no
defence against someone who can write into the tier: encryption is (encryption.py).
"""

import hashlib
from typing import NamedTuple

import numpy as np
import xxhash

from miniserve.core.hashing import BlockHash

Payload = np.ndarray[tuple[int], np.dtype[np.uint8]]
OWNER_BYTES = 16


class BlockKey(NamedTuple):
    """Whose block it is, and which.

    The hash alone tells blocks apart, as it covers the salt; the owner is what finds all of a tenant's.

    Attributes:
        owner: see `owner_of`.
        content: its hash.
    """

    owner: bytes
    content: BlockHash


class Record(NamedTuple):
    """A block.

    Attributes:
        key: its identity.
        payload: [stored bytes] uint8.
        checksum: of key and payload, as it came.
    """

    key: BlockKey
    payload: Payload
    checksum: int

    @property
    def is_sound(self) -> bool:
        """Whether the payload is what it was."""
        return checksum_of(self.key, self.payload) == self.checksum


def checksum_of(key: BlockKey, payload: Payload) -> int:
    """64 bits. The key is part of it: another block's bytes are as wrong as garbled ones."""
    digest = xxhash.xxh3_64(key.owner + key.content)
    digest.update(payload.data)
    return digest.intdigest()


def owner_of(salt: str) -> bytes:
    """Stands for a tenant wherever its blocks lie: 16 bytes that tell nobody the salt."""
    return hashlib.sha256(b"miniserve-kv-owner" + salt.encode()).digest()[:OWNER_BYTES]
