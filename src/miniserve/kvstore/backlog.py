"""`Backlog`: KV blocks that wait to be written to disk, and the thread that writes them, one after another.

If the disk cannot keep up, blocks are skipped rather than waited for. A block stays at the front until it has been
written, so what is being written is known, and an empty backlog means that all of it is on disk.
"""

import threading
from collections import deque

from miniserve.kvstore.disk import DiskTier
from miniserve.kvstore.record import Record

PATIENCE_S = 10.0  # with a block that is being written


class Backlog:
    """Of one disk.

    Args:
        disk: written to by this thread, and by no other of this process.
        longest: how many blocks may wait.
    """

    def __init__(self, disk: DiskTier, longest: int) -> None:
        self._disk, self._longest = disk, longest
        self._waiting: deque[Record] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._write, name="miniserve-kv-disk", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """Have a copy of a block written that is not on disk; it is skipped, and counted, if too many wait."""
        if record.key in self._disk:
            return
        with self._changed:
            if len(self._waiting) >= self._longest:
                self._disk.counts.skipped += 1
                return
            self._waiting.append(record._replace(payload=record.payload.copy()))
            self._changed.notify_all()

    def forget(self, owner: bytes) -> None:
        """None of a tenant's blocks is written after this; the one that is being written has been.

        Raises:
            TimeoutError: it takes longer than `PATIENCE_S`.
        """
        with self._changed:
            if not self._waiting:
                return
            first, *others = self._waiting  # the first is being written: the thread takes it out itself
            self._waiting = deque([first, *(record for record in others if record.key.owner != owner)])
            if first.key.owner == owner and not self._changed.wait_for(lambda: not self._is_first(first), PATIENCE_S):
                raise TimeoutError(f"a block is being written since {PATIENCE_S:g} s: delete again when it is")

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything has been written; False if that takes too long."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, timeout_s)

    def close(self) -> None:
        """Write no more than the block that is being written, and end the thread."""
        with self._changed:
            self._closing = True
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join(PATIENCE_S)

    def _is_first(self, record: Record) -> bool:
        return bool(self._waiting) and self._waiting[0] is record

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if self._closing:
                    return
                record = self._waiting[0]
            self._disk.put(record)
            with self._changed:
                if self._waiting:
                    self._waiting.popleft()
                self._changed.notify_all()
