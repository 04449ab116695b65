"""`Member`: one engine of a fleet, and what a router may know of it.

What is cached there the engine says itself; what it has to do is counted here, from what was sent to it. So a request
weighs from the moment it is sent.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from miniserve.core.hashing import BlockHash
from miniserve.core.offer import Offer
from miniserve.core.routing import Load
from miniserve.server.engine_client import EngineClient
from miniserve.server.fleet.output import Output
from miniserve.server.messages import Cached
from miniserve.server.reply import Reply


class Member:
    """An engine of a fleet. It is an `EngineView`.

    Attributes:
        name: among the fleet's.
        client: its process.
    """

    def __init__(self, name: str, client: EngineClient) -> None:
        self.name, self.client = name, client
        self._cached: set[BlockHash] = set()
        self._open: dict[Output, int] = {}  # and how many tokens are to be computed before its next one comes
        client.on_cached = self._note

    @property
    def load(self) -> Load:
        """Of `EngineView`."""
        size = self.client.facts.block_size
        blocks = sum(-(-output.num_tokens // size) for output in self._open)
        return Load(sum(self._open.values()), blocks, len(self._open))

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
        self._open[output] = num_missing
        params = replace(output.params, prompt_logprobs=None) if output.tokens else output.params  # said already
        try:
            came, salt = list(output.tokens), output.cache_salt
            with await self.client.submit(
                [output.prompt], params, cache_salt=salt, moves=moves, prior=came, offer=offer
            ) as reply:
                yield reply
        finally:
            del self._open[output]

    def heard_of(self, output: Output) -> None:
        """A token of it has come: what was missing is computed."""
        self._open[output] = 0

    def _note(self, cached: Cached) -> None:
        if cached.whole:
            self._cached.clear()
        for content, is_there in cached.changes:
            if is_there:
                self._cached.add(content)
            else:
                self._cached.discard(content)
