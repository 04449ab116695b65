"""What encryption costs the disk tier: bytes a second, written and read, with and without a key, side by side.

Blocks of 1 MiB of random bytes, from and to memory, through `DiskTier` by one thread. Read once from the system's page
cache, where the cost shows most, and once from the disk, after the pages have been dropped. Both kinds take turns, in
fresh directories; medians of rounds. `cipher`: AES-256-GCM on the same blocks in memory alone.

    python benchmarks/kv_encryption.py

Writes results/kv_encryption.json.
"""

import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from miniserve.bench.record import write_record
from miniserve.bench.tiers import forget_pages
from miniserve.kvstore.disk import DiskTier
from miniserve.kvstore.encryption import Cipher, MasterKey
from miniserve.kvstore.record import BlockKey, Record, checksum_of, owner_of

BLOCK_BYTES, NUM_BLOCKS, ROUNDS = 2**20, 64, 9


def blocks() -> list[Record]:
    """Random ones of one tenant."""
    made = []
    for _ in range(NUM_BLOCKS):
        key, payload = BlockKey(owner_of(""), os.urandom(32)), np.frombuffer(os.urandom(BLOCK_BYTES), np.uint8)
        made.append(Record(key, payload, checksum_of(key, payload)))
    return made


def rate(work: Callable[[Record], object], records: list[Record]) -> float:
    """Bytes a second of doing it with each."""
    began_s = time.perf_counter()
    for record in records:
        assert work(record) is not False
    return NUM_BLOCKS * BLOCK_BYTES / (time.perf_counter() - began_s)


def main() -> None:
    """Measure, print, write."""
    records, cipher = blocks(), Cipher(os.urandom(32))
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(ROUNDS):
        found["cipher"].append(rate(lambda record: cipher.seal([record.payload.data], b""), records))
        for kind in ("plain", "encrypted"):
            with tempfile.TemporaryDirectory() as name:
                folder, master = Path(name), MasterKey(os.urandom(32)) if kind == "encrypted" else None
                tier = DiskTier(folder, 2**30, BLOCK_BYTES, b"d" * 32, master)
                found[f"{kind} write"].append(rate(tier.put, records))
                found[f"{kind} read, page cache"].append(rate(lambda record: bool(tier.get(record.key)), records))  # noqa: B023
                forget_pages(folder)
                found[f"{kind} read, disk"].append(rate(lambda record: bool(tier.get(record.key)), records))  # noqa: B023
                assert tier.counts.saves == NUM_BLOCKS
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    for name, each in medians.items():
        print(f"{name:30} {each / 1e6:8.0f} MB/s")
    data = {"block_bytes": BLOCK_BYTES, "blocks": NUM_BLOCKS, "rounds": ROUNDS, "bytes_per_s": medians}
    command = "python benchmarks/kv_encryption.py"
    write_record(Path("results/kv_encryption.json"), data, command, "cpu")


if __name__ == "__main__":
    main()
