"""What makes two KV blocks the same: a SHA-256 chain over all tokens up to and including the block's own.

A block's hash covers its parent's hash, its token ids and, at the root, a key that names everything else the content
depends on (model, adapter, the tenant's salt). Equal hashes therefore mean equal KV, without comparing tokens, and a
collision cannot be forged. Tiers, peers and routers speak in these hashes.
"""

import hashlib
import struct
from collections.abc import Sequence

BlockHash = bytes


def root_hash(*keys: str) -> BlockHash:
    """The chain's start for one combination of model, adapter, salt ... Each key is length-prefixed, so that
    ("ab", "c") and ("a", "bc") differ, and none can imitate a block."""
    digest = hashlib.sha256(b"miniserve-kv-root")
    for key in keys:
        data = key.encode()
        digest.update(struct.pack("<Q", len(data)) + data)
    return digest.digest()


def block_hash(parent: BlockHash, token_ids: Sequence[int]) -> BlockHash:
    """The identity of a full block whose predecessor in the sequence is `parent` (or a root)."""
    return hashlib.sha256(b"miniserve-kv-block" + parent + struct.pack(f"<{len(token_ids)}q", *token_ids)).digest()


def block_hashes(token_ids: Sequence[int], block_size: int, *keys: str) -> list[BlockHash]:
    """The identities of a sequence's full blocks, under the root of `keys`."""
    found, parent = [], root_hash(*keys)
    for at in range(0, len(token_ids) - block_size + 1, block_size):
        parent = block_hash(parent, token_ids[at : at + block_size])
        found.append(parent)
    return found
