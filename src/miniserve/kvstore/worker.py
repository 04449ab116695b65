"""`Worker`: the thread that moves KV blocks between the device and the tiers.

Loads go before saves, since a request waits for a load, and a save only holds blocks. A deletion takes its turn among
the saves, so that nothing which was begun before it can come after it. What is saved is written through: to host memory
and, a little later and by a thread of its own (backlog.py), to disk. So a block that host memory has no room for any
more is simply dropped (the disk has it), nothing is left to be written when the process ends or dies, and other
processes find blocks soon. Written once in any case, as it would be if it went to disk only when host memory is short:
it would go there just the same in the end.

What is read from disk is put into host memory: it was wanted now, and so it may be again.

The thread lives as long as the worker is not closed; it knows nothing of the engine but its KV cache.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

import torch

from miniserve.core.loading import Rate
from miniserve.kvstore.backlog import Backlog
from miniserve.kvstore.blocks import STAGED_BLOCKS, BlockCopier
from miniserve.kvstore.disk import DiskTier
from miniserve.kvstore.host import HostTier
from miniserve.kvstore.jobs import Delete, Job, Load, Save
from miniserve.kvstore.packing import Packing
from miniserve.kvstore.record import BlockKey, Record, checksum_of

BACKLOG_BYTES = 2**27  # of blocks that wait to be written to disk; 16 blocks at least
CLOSE_S = 10.0  # for what is still to be saved, when the worker is closed

Tier = HostTier | DiskTier

logger = logging.getLogger(__name__)


class Worker:
    """Carries out jobs, and puts them into `ended`.

    Args:
        copier: to and from the device.
        packing: what is stored of a block.
        tiers: at most one of each kind, the fastest first.

    Attributes:
        rates: of loads, by the tier's name.
    """

    def __init__(self, copier: BlockCopier, packing: Packing, tiers: Sequence[Tier]) -> None:
        self._changed = threading.Condition()
        self.rates = {tier.name: Rate() for tier in tiers}
        self._copier, self._packing, self._tiers = copier, packing, tiers
        self._host = next((tier for tier in tiers if isinstance(tier, HostTier)), None)
        self._disk = next((tier for tier in tiers if isinstance(tier, DiskTier)), None)
        longest = max(16, BACKLOG_BYTES // packing.stored.block_bytes)
        self._backlog = Backlog(self._disk, longest) if self._disk is not None else None
        self._loads: deque[Load] = deque()
        self._saves: deque[Save | Delete] = deque()
        self._ended: deque[Job] = deque()
        self._closing = False
        self._staged = copier.buffers(STAGED_BLOCKS)
        self._stored = self._staged
        if packing.stored != copier.layout:
            self._stored = torch.empty((STAGED_BLOCKS, packing.stored.block_bytes), dtype=torch.uint8)
        self._thread = threading.Thread(target=self._move, name="miniserve-kv", daemon=True)
        self._thread.start()

    def begin(self, job: Load | Save) -> None:
        """Do this."""
        with self._changed:
            (self._loads if isinstance(job, Load) else self._saves).append(job)  # type: ignore[arg-type]
            self._changed.notify_all()

    def delete(self, owner: bytes) -> Future[dict[str, int]]:
        """Have every tier forget a tenant's blocks, those that are being saved too."""
        order = Delete(owner, Future())
        with self._changed:
            self._saves.append(order)
            self._changed.notify_all()
        return order.done

    def take_ended(self, wait_s: float = 0.0) -> list[Job]:
        """The jobs that have ended by themselves since the last call; waits a little for the first."""
        with self._changed:
            if wait_s and not self._ended:
                self._changed.wait_for(lambda: self._ended, wait_s)
            ended = list(self._ended)
            self._ended.clear()
        return ended

    def flush(self, timeout_s: float = CLOSE_S) -> bool:
        """Wait until everything has been written; False if that takes too long."""
        until_s = time.monotonic() + timeout_s
        with self._changed:
            if not self._changed.wait_for(lambda: not (self._loads or self._saves), timeout_s):
                return False
        return self._backlog is None or self._backlog.flush(max(until_s - time.monotonic(), 0))

    def close(self) -> None:
        """Write what is to be written, for `CLOSE_S` at most, and end the thread."""
        self.flush()
        with self._changed:
            self._closing = True
            for job in self._saves:
                if isinstance(job, Delete):
                    job.done.cancel()
            self._loads.clear()
            self._saves.clear()
            self._changed.notify_all()
        if self._backlog is not None:
            self._backlog.close()
        self._thread.join(CLOSE_S)

    def _move(self) -> None:
        """The thread."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._loads or self._saves or self._closing)
                if self._closing:
                    return
                job = self._loads[0] if self._loads else self._saves[0]
            if isinstance(job, Delete):
                self._delete(job)
                with self._changed:
                    if not self._closing:
                        self._saves.popleft()
                    self._changed.notify_all()
                continue
            try:
                if isinstance(job, Load):
                    self._load(job)
                else:
                    self._save(job)
            except Exception:
                logger.exception("a KV block could not be moved")
            ended = job.end(now=False)
            with self._changed:
                if not self._closing:
                    (self._loads if isinstance(job, Load) else self._saves).popleft()
                if ended:
                    self._ended.append(job)
                self._changed.notify_all()

    def _load(self, load: Load) -> None:
        for at in range(0, len(load.keys), STAGED_BLOCKS):
            keys = load.keys[at : at + STAGED_BLOCKS]
            began_s = time.monotonic()
            if self._disk is not None:
                self._disk.expect([key for key in keys if self._host is None or key not in self._host])
            sources, spent_s = [], []
            for row, key in zip(self._stored.numpy(), keys, strict=False):
                record, tier = self._find(key)
                if record is None or tier is None:
                    break
                row[:] = record.payload
                if tier is self._disk and self._host is not None:
                    self._host.put(record)
                sources.append(tier)
                now_s = time.monotonic()
                spent_s.append(now_s - began_s)
                began_s = now_s
            if not sources:
                return
            found = self._packing.unpack(self._stored[: len(sources)])
            with load.copying() as wanted:
                if not wanted:
                    return
                self._copier.scatter(found, load.blocks[at : at + len(sources)], load.after)
                load.num_loaded += len(sources)
            each_s = (time.monotonic() - began_s) / len(sources)
            for tier, seconds in zip(sources, spent_s, strict=True):
                self._note_load(tier, seconds + each_s)
            if len(sources) < len(keys):
                return

    def _find(self, key: BlockKey) -> tuple[Record | None, Tier | None]:
        """A block, in the first tier that has it."""
        for at, tier in enumerate(self._tiers):
            if record := tier.get(key):
                for faster in self._tiers[:at]:
                    faster.counts.misses += 1
                return record, tier
        return None, None

    def _note_load(self, tier: Tier, seconds: float) -> None:
        size = self._packing.stored.block_bytes
        tier.counts.hits += 1
        tier.counts.loaded_bytes += size
        tier.counts.load_s += seconds
        self.rates[tier.name].observe(size, seconds)

    def _save(self, save: Save) -> None:
        for at in range(0, len(save.keys), STAGED_BLOCKS):
            keys = save.keys[at : at + STAGED_BLOCKS]
            staged = self._staged[: len(keys)]
            with save.copying() as wanted:
                if not wanted:
                    return
                self._copier.gather(save.blocks[at : at + len(keys)], staged, save.after)
            for key, payload in zip(keys, self._packing.pack(staged).numpy(), strict=True):
                began_s = time.monotonic()
                record = Record(key, payload, checksum_of(key, payload))
                if self._host is not None:
                    self._host.put(record)
                    self._host.counts.save_s += time.monotonic() - began_s
                if self._backlog is not None:
                    self._backlog.put(record)

    def _delete(self, order: Delete) -> None:
        if not order.done.set_running_or_notify_cancel():
            return
        try:
            if self._backlog is not None:
                self._backlog.forget(order.owner)
            order.done.set_result({tier.name: tier.delete(order.owner) for tier in self._tiers})
        except Exception as error:
            order.done.set_exception(error)
