"""`SharedMemory`: a room is memory of this host without a name, which a peer maps: no bytes are copied on the way.

Linux's `memfd_create` makes it. It lives as long as anybody has it open or mapped, and no longer, whatever way its
processes end: nothing is left behind in /dev/shm, and a reader keeps what it has mapped when the maker is killed.
A peer opens it through /proc/PID/fd, as only processes of the same user may. Another process could come to have that
number; so each room ends in a secret that its place repeats, and a byte in which a reader notes that it is done.
"""

import mmap
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from miniserve.errors import InvalidRequestError
from miniserve.kvstore.transfer import TransferError

SECRET_BYTES = 16
READ = b"\1"


class Place(NamedTuple):
    """Where a room is: a process, its file, and what the memory ends with."""

    pid: int
    file: int
    secret: bytes


class SharedRoom:
    """A room in this host's memory."""

    def __init__(self, num_bytes: int) -> None:
        secret = secrets.token_bytes(SECRET_BYTES)
        self._file, self._size = os.memfd_create("miniserve-kv", os.MFD_CLOEXEC), num_bytes + SECRET_BYTES + 1
        try:
            os.ftruncate(self._file, self._size)
            memory = mmap.mmap(self._file, self._size)
        except OSError:
            os.close(self._file)
            raise
        memory[num_bytes:-1] = secret
        self.data = torch.frombuffer(memory, dtype=torch.uint8, count=num_bytes)  # which keeps the mapping
        self.place = Place(os.getpid(), self._file, secret)

    @property
    def was_read(self) -> bool:
        """Of `Room`."""
        return os.pread(self._file, 1, self._size - 1) == READ

    def close(self) -> None:
        """Of `Room`."""
        os.close(self._file)
        del self.data


class SharedMemory:
    """Rooms on this host."""

    def __init__(self) -> None:
        if not hasattr(os, "memfd_create"):
            raise InvalidRequestError("KV moves through shared memory on Linux only: this system has no memfd_create")

    def room(self, num_bytes: int) -> SharedRoom:
        """Of `KVTransfer`."""
        return SharedRoom(num_bytes)

    @contextmanager
    def read(self, place: object, num_bytes: int) -> Iterator[Tensor]:
        """Of `KVTransfer`. The tensor is the peer's memory, mapped; what is written into it stays here."""
        if not isinstance(place, Place):
            raise TransferError(f"this is no place in shared memory: {place!r:.80}")
        try:
            file = os.open(f"/proc/{place.pid}/fd/{place.file}", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise TransferError(f"process {place.pid} has gone, or its room has been closed: {error}") from error
        try:
            size = os.fstat(file).st_size
            if size != num_bytes + SECRET_BYTES + 1:
                raise TransferError(f"process {place.pid} has closed the room: another file has its number")
            memory = mmap.mmap(file, size, access=mmap.ACCESS_COPY)
            if memory[num_bytes:-1] != place.secret:
                raise TransferError(f"process {place.pid} has closed the room: another one has its number")
            yield torch.frombuffer(memory, dtype=torch.uint8, count=num_bytes)
            os.pwrite(file, READ, size - 1)
        finally:
            os.close(file)

    def tidy(self) -> None:
        """Of `KVTransfer`: there is nothing."""

    def close(self) -> None:
        """Of `KVTransfer`: there is nothing."""
