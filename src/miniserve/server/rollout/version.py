"""`Version`: one version of a model, from cold to ready and back.

    cold -> loading -> checking -> ready -> draining -> cold

What cannot be loaded, or does not pass the gate, is "failed", and may be loaded again. Whoever uses a version holds a
lease until the engine has accepted the request; a version that drains waits for leases, then for what is open in the
engine, and only then ends it: no request notices. Single-threaded, on the event loop.
"""

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum

from miniserve.server.backend import Backend
from miniserve.server.errors import APIError, unavailable
from miniserve.server.rollout.gate import Gate

LOOK_S = 0.05  # while one drains


class State(StrEnum):
    """Where in its life a version is."""

    COLD = "cold"
    LOADING = "loading"
    CHECKING = "checking"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Version:
    """One version.

    Args:
        name: among the versions; "" if there is only one, which has none.
        make: makes what computes it, not started.
        gate: what it must pass; None: nothing.

    Attributes:
        state: see `State`.
        reason: why it failed; "" if it has not.
        backend: what computes it, from the time it is loading; None before.
        seconds: that loading and checking took.
    """

    def __init__(self, name: str, make: Callable[[], Backend], gate: Gate | None = None) -> None:
        self.name, self._make, self._gate = name, make, gate
        self.state, self.reason, self.seconds = State.COLD, "", 0.0
        self.backend: Backend | None = None
        self._leases = 0

    @property
    def engine(self) -> Backend:
        """What computes it. Raises APIError: 503, it is not ready."""
        if self.backend is None or self.state is not State.READY:
            raise unavailable(f"version {self.name} is {self.state}")
        return self.backend

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""
        return self.state is State.READY and self.backend is not None and self.backend.ready

    @property
    def num_open(self) -> int:
        """Requests that it has not answered to the end."""
        return self._leases + (self.backend.num_open if self.backend else 0)

    async def load(self, prepare: Callable[[Backend], None] = lambda _: None) -> None:
        """Start it, and see whether it passes. Returns when it is ready.

        Args:
            prepare: called with what computes it before it starts.

        Raises:
            APIError: 409, it is loaded already, or about to be, or to go.
            MiniserveError: it cannot be loaded, or does not pass; it has failed.
        """
        if self.state not in (State.COLD, State.FAILED):
            raise APIError(409, f"version {self.name} is {self.state}: it cannot be loaded now", code="conflict")
        began, self.state, self.reason = time.monotonic(), State.LOADING, ""
        backend = self.backend = self._make()
        prepare(backend)
        try:
            await backend.start()
            self.state = State.CHECKING
            if self._gate:
                await self._gate.check(backend)
        except BaseException as error:
            self.state, self.reason, self.backend = State.FAILED, str(error) or type(error).__name__, None
            await backend.stop()
            raise
        self.state, self.seconds = State.READY, time.monotonic() - began

    async def unload(self) -> None:
        """Take no more, wait for what is open, end it.

        Raises:
            APIError: 409, it is not ready.
        """
        if self.state is not State.READY:
            raise APIError(409, f"version {self.name} is {self.state}: it cannot be unloaded now", code="conflict")
        self.state = State.DRAINING
        while self.num_open:
            await asyncio.sleep(LOOK_S)
        await self.stop()
        self.state = State.COLD
        gc.collect()  # the ended process's objects, pipe and tokenizer among them, refer to each other

    async def stop(self) -> None:
        """End it at once; what is open fails."""
        backend, self.backend, self.state = self.backend, None, State.COLD
        if backend:
            await backend.stop()

    @contextmanager
    def lease(self) -> Iterator[Backend]:
        """What computes it, which will not drain meanwhile. Raises APIError: 503, it is not ready."""
        engine = self.engine
        self._leases += 1
        try:
            yield engine
        finally:
            self._leases -= 1
