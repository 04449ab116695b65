"""KV blocks of a hundred bytes, each known by a number."""

import hashlib

import numpy as np

from miniserve.kvstore.record import BlockKey, Record, checksum_of, owner_of

SIZE = 100
DOMAIN = b"d" * 32
OWNER = owner_of("salt")


def record(number: int, owner: bytes = OWNER) -> Record:
    """Always the same for a number, and different from every other's."""
    key = BlockKey(owner, hashlib.sha256(str(number).encode()).digest())
    payload = np.random.default_rng(number).integers(0, 256, SIZE, np.uint8)
    return Record(key, payload, checksum_of(key, payload))
