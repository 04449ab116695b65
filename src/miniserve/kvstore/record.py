"""A KV block in a tier: its bytes, and a checksum that was taken when they came and goes with them from tier to tier.

Whoever takes a block out of a tier compares, so that bytes which changed on the way, in memory or on disk, are a miss
and never somebody's past. XXH3 finds accidents (a flipped bit in a block of any size) at the speed of memory; it is no
defence against someone who can write into the tier.
"""

from typing import NamedTuple

import numpy as np
import xxhash

from miniserve.core.hashing import BlockHash

Payload = np.ndarray[tuple[int], np.dtype[np.uint8]]


class Record(NamedTuple):
    """A block.

    Attributes:
        key: its identity.
        payload: [stored bytes] uint8.
        checksum: of key and payload, as it came.
    """

    key: BlockHash
    payload: Payload
    checksum: int

    @property
    def is_sound(self) -> bool:
        """Whether the payload is what it was."""
        return checksum_of(self.key, self.payload) == self.checksum


def checksum_of(key: BlockHash, payload: Payload) -> int:
    """64 bits. The key is part of it: another block's bytes are as wrong as garbled ones."""
    digest = xxhash.xxh3_64(key)
    digest.update(payload.data)
    return digest.intdigest()
