"""`TieredKV`: KV that outlives the device's memory, in host memory and on disk, as the scheduler's `KVConnector`.

Every block that fills up is copied out by a thread, by its hash, unless a tier has it; when a prompt needs it and the
device has forgotten it, it is copied in, if that is faster than to compute it again (core/loading.py). Hashes cover the
tenant's salt, so nobody is given what he could not have found on the device.

What is promised: a save reads its blocks once the step that fills them is done, and holds them until it has; a load
gives the bytes that were saved or, for whatever reason, none; both have ended after `LOAD_S` or `SAVE_S`; and saves
never hold more than a share of the pool, beyond which blocks are skipped.
"""

import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future

from miniserve.core.connector import Progress
from miniserve.core.kv_counts import TierCounts
from miniserve.core.loading import Piece, Seconds, worth_loading
from miniserve.core.request import Request
from miniserve.kvstore.blocks import BlockCopier
from miniserve.kvstore.jobs import Job, Load, Save
from miniserve.kvstore.packing import Packing
from miniserve.kvstore.record import BlockKey, owner_of
from miniserve.kvstore.worker import Tier, Worker

LOAD_S = 10.0
SAVE_S = 10.0
WAIT_S = 0.02  # that `poll` may sleep
HELD_SHARE = 0.5  # of the pool's blocks, by saves at a time


class TieredKV:
    """A connector over tiers.

    Args:
        copier: to and from the device.
        packing: what is stored of a block.
        tiers: at most one of each kind, the fastest first.
        identity: of what the blocks hold, for the root of their hashes: equal for equal layouts of what is stored, and,
            where that is encrypted, for equal keys.
        num_blocks: of the pool.
        recompute_s: how long tokens take to compute; None: whatever is found is loaded.
    """

    def __init__(
        self,
        copier: BlockCopier,
        packing: Packing,
        tiers: Sequence[Tier],
        *,
        identity: str,
        num_blocks: int,
        recompute_s: Seconds | None,
    ) -> None:
        self._size, self._stored_bytes = packing.stored.block_size, packing.stored.block_bytes
        self._copier, self._tiers, self.identity = copier, tiers, identity
        self._recompute_s = recompute_s
        self._worker = Worker(copier, packing, tiers)
        self._jobs: dict[Job, None] = {}
        self._most_held = max(1, int(num_blocks * HELD_SHARE))
        self._deleting: list[bytes] = []  # owners, while tiers forget them
        self._declined: str | None = None  # the last request for which something was
        self._close = weakref.finalize(self, self._worker.close)  # also when this object is forgotten

    @property
    def counts(self) -> dict[str, TierCounts]:
        """What each tier has done, by its name."""
        return {tier.name: tier.counts for tier in self._tiers}

    def lookup(self, request: Request, num_computed: int) -> int:
        """Of `KVConnector`."""
        first, full = num_computed // self._size, (len(request.token_ids) - 1) // self._size
        if num_computed % self._size or first >= full:
            return 0
        if self._deleting and owner_of(request.salt) in self._deleting:
            return 0
        runs: list[tuple[Tier, int]] = []  # consecutive blocks of one tier
        for key in self._keys(request, first, full):
            tier = next((tier for tier in self._tiers if tier.look(key)), None)
            if tier is None:
                break
            if runs and runs[-1][0] is tier:
                runs[-1] = tier, runs[-1][1] + 1
            else:
                runs.append((tier, 1))
        if not runs or self._recompute_s is None:
            return sum(count for _, count in runs) * self._size
        rates = self._worker.rates
        pieces = [
            Piece(count * self._size, rates[tier.name].seconds(count * self._stored_bytes)) for tier, count in runs
        ]
        num_tokens = worth_loading(num_computed, pieces, self._recompute_s)
        if request.request_id != self._declined:  # one that waits for blocks is looked up again and again
            passed = 0
            for tier, count in runs:
                if passed >= num_tokens:
                    self._declined = request.request_id
                    rates[tier.name].decline()
                    tier.counts.declined += count
                passed += count * self._size
        return num_tokens

    def load(self, request: Request, start: int, num_tokens: int) -> None:
        """Of `KVConnector`."""
        first, end = start // self._size, (start + num_tokens) // self._size
        keys = self._keys(request, first, end)
        blocks = list(request.block_table[first:end])
        self._begin(Load(blocks, keys, self._copier.mark(), time.monotonic() + LOAD_S, request))

    def computed(self, request: Request, first_block: int) -> Sequence[int]:
        """Of `KVConnector`."""
        end, fastest = request.num_registered, self._tiers[0]
        keys = dict(enumerate(self._keys(request, first_block, end), first_block))
        new = [at for at, key in keys.items() if not any(key in tier for tier in self._tiers)]
        # What is computed again, or was begun in another engine, says nothing of the tiers.
        if not request.num_preemptions and not request.num_resumed:
            missed = sum((at + 1) * self._size <= request.num_prompt_tokens for at in new)
            for tier in self._tiers:
                tier.counts.misses += missed
        held = sum(len(job.blocks) for job in self._jobs if isinstance(job, Save) and not job.has_ended)
        room = max(0, self._most_held - held)
        if len(new) > room:
            fastest.counts.skipped += len(new) - room
            del new[room:]
        if not new:
            return ()
        blocks = [request.block_table[at] for at in new]
        wanted = [keys[at] for at in new]
        self._begin(Save(blocks, wanted, self._copier.mark(), time.monotonic() + SAVE_S))
        return blocks

    def finished(self, request: Request) -> Sequence[int]:  # noqa: ARG002
        """Of `KVConnector`: whatever is to be kept is being saved already."""
        return ()

    def poll(self, wait: bool) -> Progress:
        """Of `KVConnector`."""
        progress = Progress()
        if not self._jobs:
            return progress
        for job in self._worker.take_ended(WAIT_S if wait else 0.0):
            self._note_end(job, progress)
        now_s = time.monotonic()
        for job in [job for job in self._jobs if job.deadline_s <= now_s]:
            if job.end(now=True):
                self._note_end(job, progress)
        return progress

    def close(self) -> None:
        """Write what is to be written, within a time, and end the threads. Nothing can be asked for afterwards."""
        self._close()

    def delete(self, salt: str) -> Future[dict[str, int]]:
        """Have every tier forget a tenant. From now on nothing of what they had of it is loaded.

        Returns:
            How many blocks each had, by its name, once it has none; an OSError, if files could not be deleted.
        """
        owner = owner_of(salt)
        self._deleting.append(owner)
        done = self._worker.delete(owner)
        done.add_done_callback(lambda _: self._deleting.remove(owner))
        return done

    def flush(self) -> bool:
        """Wait until all that was saved is where it is to be; False if that takes too long."""
        return self._worker.flush()

    def _keys(self, request: Request, first: int, end: int) -> list[BlockKey]:
        """Of its blocks from `first` up to `end`."""
        owner = owner_of(request.salt)
        return [BlockKey(owner, content) for content in request.block_hashes(self._size, end)[first:end]]

    def _begin(self, job: Load | Save) -> None:
        self._jobs[job] = None
        self._worker.begin(job)

    def _note_end(self, job: Job, progress: Progress) -> None:
        del self._jobs[job]
        if isinstance(job, Load):
            progress.loaded.append((job.request, job.num_loaded * self._size))
        else:
            progress.released += job.blocks
