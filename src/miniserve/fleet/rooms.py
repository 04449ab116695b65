"""`Rooms`: memory that one engine fills with the KV of requests that leave, and that others read.

A room stands until it is closed or has been read, or for `hold_s` if nobody comes for it; all of them together take no
more than `capacity_bytes`. Rooms are made and closed by one thread; room for them is promised by another, before.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch

from miniserve.core.kv_counts import MoveCounts
from miniserve.core.offer import Offer
from miniserve.kvstore.transfer import KVTransfer, Room


class Source(NamedTuple):
    """What an offer says to another engine: the form of the blocks, as JSON, and where they are."""

    layout: str
    place: object


class Tally:
    """`MoveCounts` that several threads change."""

    def __init__(self) -> None:
        self._lock, self._counts = threading.Lock(), MoveCounts()

    @property
    def now(self) -> MoveCounts:
        """What they are, apart from what they become."""
        with self._lock:
            return replace(self._counts)

    @contextmanager
    def changing(self) -> Iterator[MoveCounts]:
        """Nobody else does meanwhile."""
        with self._lock:
            yield self._counts


class Rooms:
    """Of one engine.

    Args:
        transfer: makes them.
        layout: of the blocks, as JSON.
        tally: takes note of what stands here.
        hold_s: how long a room stands that nobody closes.
        capacity_bytes: of all rooms together.
    """

    def __init__(self, transfer: KVTransfer, layout: str, tally: Tally, *, hold_s: float, capacity_bytes: int) -> None:
        self._transfer, self._layout, self._tally = transfer, layout, tally
        self._hold_s, self._capacity = hold_s, capacity_bytes
        self._promised = 0  # bytes of rooms that stand or are to be filled
        self._lock = threading.Lock()
        self._standing: dict[str, tuple[Room, Offer]] = {}  # the one that expires first at the front

    def promise(self, num_bytes: int) -> bool:
        """Whether there will be room for so much. If so, `fill` is to be called with it."""
        with self._lock:
            fits = self._promised + num_bytes <= self._capacity
            self._promised += num_bytes if fits else 0
        return fits

    def fill(self, request_id: str, num_tokens: int, num_bytes: int, write: Callable[[torch.Tensor], None]) -> Offer:
        """Make the room that was promised for a request.

        Args:
            request_id: whose.
            num_tokens, num_bytes: how much it is.
            write: fills the room's bytes.

        Raises:
            Exception: whatever the transfer or `write` raised. Nothing stands then, and nothing is promised.
        """
        started, room = time.monotonic(), None
        try:
            room = self._transfer.room(num_bytes)
            write(room.data)
        except BaseException:
            self._give_back(num_bytes)
            if room:
                room.close()
            raise
        now = time.monotonic()
        offer = Offer(num_tokens, num_bytes, now + self._hold_s, Source(self._layout, room.place))
        self.close(request_id)  # an earlier one of that name
        self._standing[request_id] = room, offer
        with self._tally.changing() as counts:
            counts.left(num_bytes, now - started)
        return offer

    def close(self, request_id: str) -> None:
        """Nobody needs that request's, if there is one."""
        if found := self._standing.pop(request_id, None):
            room, offer = found
            room.close()
            self._give_back(offer.num_bytes)
            with self._tally.changing() as counts:
                counts.held -= 1
                counts.held_bytes -= offer.num_bytes

    def tidy(self) -> None:
        """Close what has been read, and what nobody came for in time."""
        self._transfer.tidy()
        now = time.monotonic()
        for request_id in [request_id for request_id, (room, _) in self._standing.items() if room.was_read]:
            self.close(request_id)
        late = [request_id for request_id, (_, offer) in self._standing.items() if offer.expires_s <= now]
        for request_id in late:
            self.close(request_id)
        with self._tally.changing() as counts:
            counts.expired += len(late)

    def close_all(self) -> None:
        """The engine ends."""
        for request_id in list(self._standing):
            self.close(request_id)

    def _give_back(self, num_bytes: int) -> None:
        with self._lock:
            self._promised -= num_bytes
