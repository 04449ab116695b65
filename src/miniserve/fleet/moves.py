"""`Moves`: the connector of an engine from which requests move to others, and to which they move.

A request that ends as MOVED leaves its KV behind: its blocks are copied into a room that peers can read, and go back to
the pool. What it says then is an `Offer`. Another engine's request that comes with one is filled from there, but for
the blocks that are cached here already. All copies are made by one thread, while steps go on.

Invariants: every move is answered, with an offer or with None, where there was no room or the copy failed; a request
whose offer cannot be taken up is computed from its tokens. No room stands for ever (see rooms.py). So nothing is held
without an end, and what fails costs time, not tokens.

It does not say who moves where; that is for whoever drives the engines.
"""

import logging
import math
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from queue import Empty, Queue, SimpleQueue
from typing import NamedTuple, TypeVar

import torch

from miniserve.core.connector import Progress
from miniserve.core.kv_counts import MoveCounts
from miniserve.core.offer import Offer
from miniserve.core.request import FinishReason, Request
from miniserve.errors import InvalidRequestError, MiniserveError
from miniserve.fleet.rooms import Rooms, Source, Tally
from miniserve.kvstore.blocks import BlockCopier, Mark
from miniserve.kvstore.conversion import check_convertible, convert
from miniserve.kvstore.layout import KVLayout
from miniserve.kvstore.transfer import KVTransfer

HOLD_S = 60.0
CAPACITY_BYTES = 2**31
LOOK_S = 1.0  # between two looks for what has expired
WAIT_S = 0.005  # a step that has nothing to compute

T = TypeVar("T")

logger = logging.getLogger(__name__)


class _Leaving(NamedTuple):
    """A request's KV is to be put into a room."""

    request_id: str
    blocks: list[int]
    num_tokens: int
    after: Mark


class _Arriving(NamedTuple):
    """A request's blocks are to be filled with the KV of its tokens [start, start + num_tokens)."""

    request: Request
    offer: Offer
    blocks: list[int]
    start: int
    num_tokens: int
    after: Mark


class _Withdrawn(NamedTuple):
    """Nobody will read that room any more."""

    request_id: str


class Moves:
    """Of one engine. `close` it.

    Args:
        copier: of the engine's KV cache.
        transfer: the way the bytes go.
        hold_s: how long a room stands that nobody withdraws.
        capacity_bytes: of all rooms together; a move that would exceed it is answered with None.
    """

    def __init__(
        self,
        copier: BlockCopier,
        transfer: KVTransfer,
        *,
        hold_s: float = HOLD_S,
        capacity_bytes: int = CAPACITY_BYTES,
    ) -> None:
        self._copier, self._transfer = copier, transfer
        self.layout = copier.layout
        self._size = copier.layout.block_size
        self._tally = Tally()
        self._rooms = Rooms(transfer, self.layout.to_json(), self._tally, hold_s=hold_s, capacity_bytes=capacity_bytes)
        self._jobs: Queue[_Leaving | _Arriving | _Withdrawn | None] = Queue()
        self._released: SimpleQueue[list[int]] = SimpleQueue()
        self._arrived: SimpleQueue[tuple[Request, int]] = SimpleQueue()
        self._answers: SimpleQueue[tuple[str, Offer | None]] = SimpleQueue()
        self._news = threading.Event()
        self._thread = threading.Thread(target=self._work, name="kv-moves", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> MoveCounts:
        """What has moved so far."""
        return self._tally.now

    def check(self, offer: Offer) -> None:
        """Raise InvalidRequestError, naming each field, if blocks of the offer's form cannot be used here."""
        assert isinstance(offer.source, Source)
        check_convertible(KVLayout.from_json(offer.source.layout), self.layout)

    def answers(self) -> list[tuple[str, Offer | None]]:
        """The requests that have left since the last call, each with its offer; None: only its tokens are left."""
        return _all_of(self._answers)

    def withdraw(self, request_id: str) -> None:
        """Nobody needs what that request left here, if it has left anything."""
        self._jobs.put(_Withdrawn(request_id))

    def close(self) -> None:
        """End the thread and close all rooms."""
        self._jobs.put(None)
        self._thread.join()

    # Of `KVConnector`, in the engine's thread.

    def lookup(self, request: Request, num_computed: int) -> int:
        """What is offered, all but the last token."""
        offer = request.offer
        if offer is None or offer.expires_s <= time.monotonic():
            return 0
        return max(min(offer.num_tokens, len(request.token_ids) - 1) - num_computed, 0)

    def load(self, request: Request, start: int, num_tokens: int) -> None:
        """Take up the request's offer, once: should it lose its blocks later, it is computed."""
        offer, request.offer = request.offer, None
        assert offer is not None, "only what was looked up is loaded"
        assert start % self._size == 0, "what is cached are whole blocks"
        blocks = list(request.block_table[start // self._size : -(-(start + num_tokens) // self._size)])
        self._jobs.put(_Arriving(request, offer, blocks, start, num_tokens, self._copier.mark()))

    def computed(self, request: Request, first_block: int) -> Sequence[int]:  # noqa: ARG002
        """Nothing is kept of a request that stays."""
        return ()

    def finished(self, request: Request) -> Sequence[int]:
        """Of a request that moves, the blocks that have been computed."""
        if request.finish_reason is not FinishReason.MOVED:
            return ()
        num_tokens = min(request.num_computed, len(request.token_ids) - 1)
        blocks = list(request.block_table[: -(-num_tokens // self._size)])
        num_bytes = len(blocks) * self.layout.block_bytes
        if not self._rooms.promise(num_bytes):
            with self._tally.changing() as counts:
                counts.refused += 1
            self._answers.put((request.request_id, None))
            return ()
        self._jobs.put(_Leaving(request.request_id, blocks, num_tokens, self._copier.mark()))
        return blocks

    def poll(self, wait: bool) -> Progress:
        """What the thread has done."""
        if wait:
            self._news.wait(WAIT_S)
        self._news.clear()
        released = [block for blocks in _all_of(self._released) for block in blocks]
        return Progress(_all_of(self._arrived), released)

    # The thread.

    def _work(self) -> None:
        looked_s = time.monotonic()
        while True:
            with suppress(Empty):
                job = self._jobs.get(timeout=LOOK_S)
                if job is None:
                    break
                if isinstance(job, _Leaving):
                    self._leave(job)
                elif isinstance(job, _Arriving):
                    self._arrive(job)
                else:
                    self._rooms.close(job.request_id)
            if time.monotonic() >= looked_s + LOOK_S:
                looked_s = time.monotonic()
                self._rooms.tidy()
        self._rooms.close_all()
        self._transfer.close()

    def _leave(self, job: _Leaving) -> None:
        offer, num_bytes = None, len(job.blocks) * self.layout.block_bytes

        def write(data: torch.Tensor) -> None:
            self._copier.gather(job.blocks, data.view(len(job.blocks), -1), job.after)

        try:
            offer = self._rooms.fill(job.request_id, job.num_tokens, num_bytes, write)
        except (MiniserveError, OSError, RuntimeError) as error:
            self._failed("the KV of a request that leaves could not be copied", error)
        self._answers.put((job.request_id, offer))  # first: when the blocks have been released, it is there
        self._released.put(job.blocks)
        self._news.set()

    def _arrive(self, job: _Arriving) -> None:
        started, arrived = time.monotonic(), 0
        try:
            if job.request.finish_reason is None:  # not aborted meanwhile
                num_bytes = self._fetch(job)
                arrived = job.num_tokens
                with self._tally.changing() as counts:
                    counts.arrived(num_bytes, time.monotonic() - started)
        except (MiniserveError, OSError, RuntimeError) as error:
            self._failed("KV that was offered could not be had: it is computed", error)
        self._arrived.put((job.request, arrived))
        self._news.set()

    def _fetch(self, job: _Arriving) -> int:
        """Copy what is offered into the request's blocks; returns how many bytes of it were needed."""
        offer = job.offer
        assert isinstance(offer.source, Source)
        theirs = KVLayout.from_json(offer.source.layout)
        if offer.expires_s <= time.monotonic():
            raise InvalidRequestError("the offer has expired")
        with self._transfer.read(offer.source.place, offer.num_bytes) as data:
            there = data.view(-1, theirs.block_bytes)
            unit = math.lcm(theirs.block_size, self._size)  # where a block begins here as there
            begin = job.start // unit * unit
            there = there[begin // theirs.block_size : -(-(job.start + job.num_tokens) // theirs.block_size)]
            fetched = there.numel()
            if theirs != self.layout:
                there = convert(there, theirs, self.layout)
            skipped = (job.start - begin) // self._size
            self._copier.scatter(there[skipped : skipped + len(job.blocks)], job.blocks, job.after)
        return fetched

    def _failed(self, what: str, error: Exception) -> None:
        logger.warning(what, extra={"reason": str(error)})
        with self._tally.changing() as counts:
            counts.failed += 1


def _all_of(queue: "SimpleQueue[T]") -> list[T]:
    """What is in it."""
    found = []
    while not queue.empty():
        found.append(queue.get())
    return found
