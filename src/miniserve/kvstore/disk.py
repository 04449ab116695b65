"""`DiskTier`: KV blocks as files below a directory, which outlive the process and may be shared by several.

Where they lie in it, directory.py says; what is in one of them, block_file.py.

Any number of processes may use one directory, of one model or of several. None needs another to be right: files appear
whole (block_file.py), are checked when they are read, and one that is gone or garbled is a miss. What a process knows
of the directory it learns when it starts, and by looking when it is asked for a block that it does not know.

`capacity_bytes` is for all files of the directory. The least recently used go first; when a file was used is its
modification time, which a hit renews. Sums are each process's own estimate, put right whenever it looks: once the
estimate is over the limit, one process at a time (the only thing a lock is needed for) lists the directory and deletes
the oldest down to `LOW_WATER` of the limit. So it may be over the limit for a moment, by what the others wrote since.

Files are for the eyes alone of the user who runs the process: they say as much as the prompts did. With a key they are
encrypted (encryption.py), and what has not been written with it is never taken for a block.

Safe to use from several threads.
"""

import logging
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from miniserve.core.kv_counts import TierCounts
from miniserve.errors import InvalidRequestError
from miniserve.kvstore.block_file import file_bytes, read_block, write_block
from miniserve.kvstore.deletion import delete_owner
from miniserve.kvstore.directory import BlockDirectory, File
from miniserve.kvstore.record import BlockKey, Record

if TYPE_CHECKING:
    from miniserve.kvstore.encryption import MasterKey

LOW_WATER = 0.9

logger = logging.getLogger(__name__)


class DiskTier:
    """Blocks of one domain, in a directory for many.

    Args:
        directory: made if it is not there.
        capacity_bytes: of all its files.
        stored_bytes: of one payload.
        domain: 32 bytes; blocks of other domains are never found.
        master: encrypts them; under another key is another domain.

    Raises:
        InvalidRequestError: no room for one block, or the directory cannot be made or written to.
    """

    name = "disk"

    def __init__(
        self,
        directory: Path,
        capacity_bytes: int,
        stored_bytes: int,
        domain: bytes,
        master: "MasterKey | None" = None,
    ) -> None:
        if master:
            domain = master.derived(domain)
        self._file_bytes = file_bytes(stored_bytes, sealed=master is not None)
        self._stored_bytes, self._domain = stored_bytes, domain
        if capacity_bytes < self._file_bytes:
            raise InvalidRequestError(
                f"the disk tier may take {capacity_bytes} bytes: a KV block of this model takes {self._file_bytes}"
            )
        self._directory = BlockDirectory(directory, domain)
        self._keys = master.tenants(domain, self._directory.home) if master else None
        self.counts = TierCounts(capacity_bytes=capacity_bytes)
        self._lock = threading.Lock()
        self._known: set[BlockKey] = set()
        self._evicting = FileLock(directory / "evicting.lock", mode=0o600)
        self._survey()
        if self.counts.used_bytes > capacity_bytes:
            self._evict()

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._known

    def look(self, key: BlockKey) -> bool:
        """Whether it is here, though another process may have written it: asks the file system if need be."""
        if key in self._known:
            return True
        if not self._directory.path(key).exists():
            return False
        with self._lock:
            self._known.add(key)
        return True

    def put(self, record: Record) -> None:
        """Write a block that is not here yet. What the system refuses is counted, and the block is not kept."""
        if self.look(record.key):
            return
        began_s = time.monotonic()
        try:
            cipher = self._keys.make(record.key.owner) if self._keys else None
            write_block(self._directory.path(record.key), self._domain, record, cipher)
        except OSError as error:
            self._failed(f"cannot be written to: {error}")
            return
        with self._lock:
            self._known.add(record.key)
            self.counts.used_bytes += self._file_bytes
            self.counts.saves += 1
            self.counts.saved_bytes += self._stored_bytes
            self.counts.save_s += time.monotonic() - began_s
            full = self.counts.used_bytes > self.counts.capacity_bytes
        if full:
            self._evict()

    def expect(self, keys: Sequence[BlockKey]) -> None:
        """These are going to be read: let the system begin with all of them at once, where it takes the hint."""
        self._directory.expect(keys)

    def get(self, key: BlockKey) -> Record | None:
        """A block; None if it is not here, or not what was written: then it is deleted."""
        path = self._directory.path(key)
        try:
            found = self._read(path, key)
            if isinstance(found, Record):
                os.utime(path)
                return found
        except FileNotFoundError:
            self._forget(key)  # another process, or somebody, deleted it
            return None
        except OSError as error:
            self._failed(f"cannot be read: {error}")
            return None
        logger.warning("%s is no KV block that can be used, and is deleted: %s", path, found)
        with suppress(OSError):
            path.unlink()
        self._forget(key)
        with self._lock:
            self.counts.corrupt += 1
            self.counts.used_bytes = max(0, self.counts.used_bytes - self._file_bytes)
        return None

    def delete(self, owner: bytes) -> int:
        """Delete a tenant's files, those of other models in this directory too. Returns how many blocks it had.

        Raises:
            OSError: some are still there.
        """
        try:
            return delete_owner(self._directory.root, owner)
        finally:
            self._survey()

    @property
    def _low_water(self) -> float:
        """Bytes that are left when room has been made: of a few blocks none is deleted that still fits."""
        capacity = self.counts.capacity_bytes
        return capacity if capacity < 10 * self._file_bytes else LOW_WATER * capacity

    def _read(self, path: Path, key: BlockKey) -> Record | str:
        """As `read_block`."""
        cipher = None
        if self._keys and not (cipher := self._keys.find(key.owner)):
            path.stat()  # without a file there is nothing to say of it
            return "the key that it was written with is gone"
        return read_block(path, self._domain, key, self._stored_bytes, cipher)

    def _forget(self, key: BlockKey) -> None:
        with self._lock:
            self._known.discard(key)

    def _failed(self, what: str) -> None:
        with self._lock:
            self.counts.errors += 1
            first = self.counts.errors == 1
        if first:
            logger.warning("%s %s; further such failures are only counted", self._directory.root, what)

    def _survey(self) -> list[File]:
        """List the directory, and know it then."""
        files = self._directory.survey()
        with self._lock:
            self._known = {key for file in files if (key := self._directory.key(file.path))}
            self.counts.used_bytes = sum(file.size for file in files)
        return files

    def _evict(self) -> None:
        """Delete the oldest files, of whatever domain, unless another process is at it."""
        try:
            with self._evicting.acquire(blocking=False):
                files = sorted(self._survey())
                excess = self.counts.used_bytes - self._low_water
                for file in files:
                    if excess <= 0:
                        break
                    with suppress(OSError):
                        file.path.unlink()
                    excess -= file.size
                    with self._lock:
                        self.counts.used_bytes -= file.size
                        self.counts.evictions += 1
                        if key := self._directory.key(file.path):
                            self._known.discard(key)
        except Timeout:
            pass
        except OSError as error:
            self._failed(f"cannot be made room in: {error}")
