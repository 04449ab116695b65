"""What a connector has its worker do: `Load` and `Save`, with an end in any case.

A job is begun, and its device blocks are touched, by the worker; it may be given up by the connector, when its time is
over, as long as no copy is going on at that moment. So after a job has ended, whoever ended it, nobody reads or writes
its blocks any more, and no job is longer under way than its deadline and one copy: a disk that hangs holds up neither
requests nor blocks.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from miniserve.core.request import Request
from miniserve.kvstore.blocks import Mark
from miniserve.kvstore.record import BlockKey


@dataclass(eq=False)
class Job:
    """Device blocks, their identities, and what must be done on the device before they are touched.

    Attributes:
        deadline_s: of `time.monotonic`.
    """

    blocks: list[int]
    keys: list[BlockKey]
    after: Mark
    deadline_s: float
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _ended: bool = field(default=False, init=False)

    @property
    def has_ended(self) -> bool:
        """Whether its blocks are not touched any more."""
        return self._ended

    @contextmanager
    def copying(self) -> Iterator[bool]:
        """While this lasts the job is not given up; False if it has been."""
        with self._lock:
            yield not self._ended

    def end(self, *, now: bool) -> bool:
        """End it; True if it was this call that did.

        Args:
            now: only if no copy is going on.
        """
        if not self._lock.acquire(blocking=not now):
            return False
        try:
            ended, self._ended = self._ended, True
            return not ended
        finally:
            self._lock.release()


@dataclass(eq=False)
class Load(Job):
    """Bring KV in.

    Attributes:
        request: whose.
        num_loaded: how many of the blocks are there, from the first on.
    """

    request: Request
    num_loaded: int = 0


@dataclass(eq=False)
class Save(Job):
    """Take KV out."""


class Delete(NamedTuple):
    """Have the tiers forget a tenant.

    Attributes:
        done: how many blocks each had, by its name; or what went wrong.
    """

    owner: bytes
    done: Future[dict[str, int]]
