"""`KVTransfer`: bytes of KV from one engine's process to another's.

One side makes a `Room`, fills it, and sends its `place`, which is plain data, by whatever way the two have. The other
reads the place. Neither waits for the other: reading is one-sided, as RDMA's is.

Invariants: a place names one room for good; a room that has been closed is not found any more, and whoever was reading
it then gets the bytes that were there, or an error, never others. What the bytes mean is `KVLayout`'s business, how
long a room stands its maker's. Places are followed only if they come from engines of the same owner.
"""

from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from miniserve.errors import MiniserveError


class TransferError(MiniserveError):
    """Bytes could not be fetched: the peer has gone, or has closed the room. The message says which."""


class Room(Protocol):
    """Memory that a peer may read.

    Attributes:
        data: [num_bytes] uint8, to be filled before the place is told to anybody.
        place: where it is, for `KVTransfer.read` in another process: it can be pickled.
    """

    @property
    def data(self) -> Tensor:
        """The memory."""
        ...

    @property
    def place(self) -> object:
        """Where it is."""
        ...

    @property
    def was_read(self) -> bool:
        """Whether a peer has read it to the end, as far as is known: `KVTransfer.tidy` looks."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


class KVTransfer(Protocol):
    """A way to move bytes. Used by one thread."""

    def room(self, num_bytes: int) -> Room:
        """Memory that peers can read."""
        ...

    def read(self, place: object, num_bytes: int) -> AbstractContextManager[Tensor]:
        """The bytes of a peer's room, [num_bytes] uint8, within the block.

        Raises:
            TransferError: they cannot be had, within a time that the transfer bounds.
        """
        ...

    def tidy(self) -> None:
        """Let go of what closed rooms have left; called now and then."""
        ...

    def close(self) -> None:
        """Let go of everything. Rooms are closed before."""
        ...
