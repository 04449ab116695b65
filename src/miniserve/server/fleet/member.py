"""`Member`: one engine of a fleet, and what a router may know of it.

What is cached there the engine says itself; what it has to do is counted here, from what was sent to it. So a request
weighs from the moment it is sent.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from miniserve.core.block_pool import BlockStored
from miniserve.core.hashing import BlockHash
from miniserve.core.offer import Offer
from miniserve.core.routing import Load
from miniserve.server.engine_client import EngineClient
from miniserve.server.fleet.output import Output
from miniserve.server.messages import Cached
from miniserve.server.reply import Reply


@dataclass(eq=False)
class _Stay:
    """An output that this engine has, perhaps twice: it may come back to where its KV still stands."""

    output: Output
    num_missing: int
    came: int  # tokens of it, when it came here

    @property
    def missing(self) -> int:
        """Tokens that are still to be computed before its next one."""
        return self.num_missing if len(self.output.tokens) == self.came else 0


class Member:
    """An engine of a fleet. It is an `EngineView`.

    Attributes:
        name: among the fleet's.
        client: its process.
    """

    def __init__(self, name: str, client: EngineClient) -> None:
        self.name, self.client = name, client
        self._cached: set[BlockHash] = set()
        self._open: set[_Stay] = set()
        client.on_cached = self._note

    @property
    def load(self) -> Load:
        """Of `EngineView`."""
        size = self.client.facts.block_size
        blocks = sum(-(-stay.output.num_tokens // size) for stay in self._open)
        return Load(sum(stay.missing for stay in self._open), blocks, len(self._open))

    def cached_blocks(self, hashes: Sequence[BlockHash]) -> int:
        """Of `EngineView`."""
        for count, content in enumerate(hashes):
            if content not in self._cached:
                return count
        return len(hashes)

    @asynccontextmanager
    async def computing(
        self, output: Output, num_missing: int, *, moves: bool = False, offer: Offer | None = None
    ) -> AsyncIterator[Reply]:
        """Have the engine go on with an output: gives its pieces. At the end of the block whatever has not ended is
        aborted, and what it left to be fetched is given up.

        Args:
            output: what is known of it.
            num_missing: tokens whose KV is to be computed.
            moves, offer: see `Submit`.

        Raises:
            APIError: the engine is not there, or has died.
            InvalidRequestError: it refuses.
        """
        stay = _Stay(output, num_missing, len(output.tokens))
        self._open.add(stay)
        params = replace(output.params, prompt_logprobs=None) if output.tokens else output.params  # said already
        try:
            came, salt = list(output.tokens), output.cache_salt
            with await self.client.submit(
                [output.prompt], params, cache_salt=salt, moves=moves, prior=came, offer=offer, name=output.name
            ) as reply:
                yield reply
        finally:
            self._open.remove(stay)

    def _note(self, cached: Cached) -> None:
        if cached.from_nothing:
            self._cached.clear()
        for event in cached.events:
            if isinstance(event, BlockStored):
                self._cached.add(event.block_hash)
            else:
                self._cached.discard(event.block_hash)
