"""`KVConnector`: the seam for KV that lives elsewhere: in host memory, on disk, or at a peer.

The scheduler asks it when a request is admitted, tells it what has been computed and what has ended, and takes note of
what it has done. A tier answers from what it saved earlier, by block hash; a peer from what the request says. Neither
needs a change in the scheduler.

The contract about memory: a block that the connector reads from or writes into has a reference in the pool on its
behalf, so that nobody else gets it meanwhile. Blocks of a load belong to the request that waits for it, which stays
LOADING until the load has ended, even if it was aborted. Blocks that `computed` and `finished` return are held until
`poll` gives them back. Every load and every hold must end, in success or failure, within a time the connector bounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from miniserve.core.request import Request


@dataclass
class Progress:
    """What a connector has done since it was last asked.

    Attributes:
        loaded: (request, tokens) for each load that ended: how many of the tokens asked for are there, counted from
            the first; fewer than asked for, or 0, is a failure, and the rest is computed.
        released: blocks it held and no longer needs, one entry a hold.
    """

    loaded: list[tuple[Request, int]] = field(default_factory=list)
    released: list[int] = field(default_factory=list)


class KVConnector(Protocol):
    """Brings KV in, and takes KV out. Called by the scheduler only, from its thread."""

    def lookup(self, request: Request, num_computed: int) -> int:
        """How many tokens' KV, from `num_computed` on, it can bring; must leave the request one token to compute."""
        ...

    def load(self, request: Request, start: int, num_tokens: int) -> None:
        """Begin to fill `request.block_table` with the KV of tokens [start, start + num_tokens)."""
        ...

    def computed(self, request: Request, first_block: int) -> Sequence[int]:
        """The request's blocks from index `first_block` to `num_registered` are full and their hashes known.

        Called after each step that filled some. Returns those of them that it wants kept until it has copied them.
        """
        ...

    def finished(self, request: Request) -> Sequence[int]:
        """The request has ended; its block table is still whole. Returns the blocks to keep, for a peer to fetch."""
        ...

    def poll(self, wait: bool) -> Progress:
        """What ended since the last call. `wait`: there is nothing else to do, so it may sleep a little first."""
        ...


class NoConnector:
    """KV lives on the device and nowhere else."""

    def lookup(self, request: Request, num_computed: int) -> int:  # noqa: ARG002
        """Nothing to bring."""
        return 0

    def load(self, request: Request, start: int, num_tokens: int) -> None:
        """Never asked."""
        raise AssertionError(f"request {request.request_id}: nothing was offered at {start} for {num_tokens} tokens")

    def computed(self, request: Request, first_block: int) -> Sequence[int]:  # noqa: ARG002
        """Saves nothing."""
        return ()

    def finished(self, request: Request) -> Sequence[int]:  # noqa: ARG002
        """Keeps nothing."""
        return ()

    def poll(self, wait: bool) -> Progress:  # noqa: ARG002
        """Nothing is ever under way."""
        return _NOTHING


_NOTHING = Progress()
