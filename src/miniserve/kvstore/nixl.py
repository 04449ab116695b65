"""`Nixl`: rooms that NVIDIA's NIXL reads, over UCX: between hosts by RDMA or TCP, and from a GPU's memory just so.

Here a room is host memory. On one host without a fast network this is the common interface, not the fast path: shared
memory moves the same bytes with one copy less.

A reader gives up after `READ_TIMEOUT_S`. A room's memory stays registered for as long after it was closed, as somebody
may be in the middle of it; nobody finds it any more whose read has not begun.
The package is `nixl` (an extra of this one), imported when the first of these is made.
"""

import os
import secrets
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miniserve.errors import InvalidRequestError
from miniserve.kvstore.transfer import TransferError

READ_TIMEOUT_S = 10.0
PAUSE_S = 2e-4  # between two looks at a transfer: the engine wants the processor


class Place(NamedTuple):
    """Where a room is: the agent's name and metadata, the memory's description, as NIXL writes them, and its number."""

    agent: str
    metadata: bytes
    memory: bytes
    number: int


class NixlRoom:
    """Host memory that is registered with an agent.

    Attributes:
        was_read: of `Room`: its agent was told so.
    """

    def __init__(self, agent: Any, num_bytes: int, number: int) -> None:
        self._agent = agent
        self.data = torch.empty(num_bytes, dtype=torch.uint8)
        self._registered = agent.register_memory(self.data)
        memory = agent.get_serialized_descs(agent.get_xfer_descs(self.data))
        self.place = Place(agent.name, agent.get_agent_metadata(), memory, number)
        self.was_read = False
        self.closed_s: float | None = None

    def close(self) -> None:
        """Of `Room`: nobody will begin to read it."""
        self.closed_s = time.monotonic()

    def free(self) -> None:
        """Nobody can be reading it any more."""
        self._agent.deregister_memory(self._registered)
        del self.data


class Nixl:
    """One agent of NIXL.

    Raises:
        InvalidRequestError: the package is not installed.
    """

    def __init__(self) -> None:
        os.environ.setdefault("NIXL_LOG_LEVEL", "WARN")
        try:
            import nixl._api as nixl
        except ImportError as error:
            raise InvalidRequestError("KV moves by NIXL once it is installed: pip install 'miniserve[nixl]'") from error
        name = f"miniserve-{os.getpid()}-{secrets.token_hex(4)}"
        with _unhurried(nixl.nixlBind):
            self._agent = nixl.nixl_agent(name, nixl.nixl_agent_config(True, False, 0, backends=["UCX"]))
        self._rooms: deque[NixlRoom] = deque()
        self._numbers = count()

    def room(self, num_bytes: int) -> NixlRoom:
        """Of `KVTransfer`."""
        self.tidy()
        self._rooms.append(NixlRoom(self._agent, num_bytes, next(self._numbers)))
        return self._rooms[-1]

    @contextmanager
    def read(self, place: object, num_bytes: int) -> Iterator[Tensor]:
        """Of `KVTransfer`. The tensor is a copy."""
        if not isinstance(place, Place):
            raise TransferError(f"this is no place of NIXL's: {place!r:.80}")
        agent, here = self._agent, torch.empty(num_bytes, dtype=torch.uint8)
        registered = agent.register_memory(here)
        try:
            self._fetch(place, here)
        finally:
            agent.deregister_memory(registered)
        yield here

    def tidy(self) -> None:
        """Of `KVTransfer`."""
        read = {note for notes in self._agent.get_new_notifs().values() for note in notes}
        for room in self._rooms:
            room.was_read |= _note(room.place.number) in read
        self._free(time.monotonic() - READ_TIMEOUT_S)

    def close(self) -> None:
        """Of `KVTransfer`."""
        self._free(float("inf"))

    def _fetch(self, place: Place, here: Tensor) -> None:
        agent, handle = self._agent, None
        try:
            peer = agent.add_remote_agent(place.metadata)
            there = agent.deserialize_descs(place.memory)
            handle = agent.initialize_xfer("READ", agent.get_xfer_descs(here), there, peer, _note(place.number))
            state, deadline_s = agent.transfer(handle), time.monotonic() + READ_TIMEOUT_S
            while state not in ("DONE", "ERR") and time.monotonic() < deadline_s:
                time.sleep(PAUSE_S)
                state = agent.check_xfer_state(handle)
        except Exception as error:  # NIXL's are its own, one a status
            raise TransferError(f"NIXL's agent {place.agent} cannot be read: {type(error).__name__} {error}") from error
        finally:
            if handle is not None:
                agent.release_xfer_handle(handle)
            agent.remove_remote_agent(place.agent)
        if state != "DONE":
            raise TransferError(f"NIXL's agent {place.agent} was not read within {READ_TIMEOUT_S} s: {state}")

    def _free(self, closed_before_s: float) -> None:
        kept: deque[NixlRoom] = deque()
        for room in self._rooms:
            if room.closed_s is not None and room.closed_s <= closed_before_s:
                room.free()
            else:
                kept.append(room)
        self._rooms = kept


@contextmanager
def _unhurried(bindings: Any) -> Iterator[None]:
    """An agent that is made within looks for messages with a pause.

    The package has no option for it, and sets none: the agent's thread would take a core from the engine all the time.
    """
    original = bindings.nixlAgentConfig

    class Config(original):  # type: ignore[misc, valid-type]
        def __setattr__(self, field: str, value: Any) -> None:
            super().__setattr__(field, round(PAUSE_S * 1e6) if field == "pthrDelay" else value)

    bindings.nixlAgentConfig = Config
    try:
        yield
    finally:
        bindings.nixlAgentConfig = original


def _note(number: int) -> bytes:
    """What NIXL tells a room's agent when it has been read."""
    return b"miniserve-read-%d" % number
