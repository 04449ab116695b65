"""What Dynamo's KV-aware router is told of an engine's cache.

The router names blocks by numbers of 64 bits and follows each to its parent. Ours are the first eight bytes of the
block's SHA-256: two blocks of one engine that share them would make a request go to the wrong engine once, and change
no token, as the engine itself compares the whole hash.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Protocol

from miniserve.core.block_pool import BlockEvent, BlockStored
from miniserve.core.hashing import BlockHash


class Publisher(Protocol):
    """Of Dynamo's `KvEventPublisher`, what is used."""

    def publish_stored(
        self, *, token_ids: list[int], num_block_tokens: list[int], block_hashes: list[int], parent_hash: int | None
    ) -> Any:
        """Blocks that follow one another are there; the first follows `parent_hash`."""
        ...

    def publish_removed(self, *, block_hashes: list[int]) -> Any:
        """Those are gone."""
        ...


def router_hash(block_hash: BlockHash) -> int:
    """A block's name for the router: a signed number of 64 bits."""
    return int.from_bytes(block_hash[:8], "little", signed=True)


class CacheTeller:
    """Tells a publisher what one engine has cached.

    Args:
        publisher: of this worker.
    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._there: set[BlockHash] = set()

    def tell(self, events: Sequence[BlockEvent], *, from_nothing: bool = False) -> None:
        """Pass on what became of the cache, as few messages as keep the order.

        `from_nothing`: what was there before is gone: its engine has died.
        """
        if from_nothing and self._there:
            self._publisher.publish_removed(block_hashes=[router_hash(each) for each in self._there])
            self._there.clear()
        for stored, run in groupby(events, key=lambda event: isinstance(event, BlockStored)):
            if stored:
                for chain in _chains([event for event in run if isinstance(event, BlockStored)]):
                    self._stored(chain)
            else:
                gone = [event.block_hash for event in run]
                self._there.difference_update(gone)
                self._publisher.publish_removed(block_hashes=[router_hash(each) for each in gone])

    def _stored(self, chain: Sequence[BlockStored]) -> None:
        self._there.update(event.block_hash for event in chain)
        parent = chain[0].parent
        self._publisher.publish_stored(
            token_ids=[token for event in chain for token in event.token_ids],
            num_block_tokens=[len(event.token_ids) for event in chain],
            block_hashes=[router_hash(event.block_hash) for event in chain],
            parent_hash=None if parent is None else router_hash(parent),
        )


def _chains(events: Sequence[BlockStored]) -> list[list[BlockStored]]:
    """The events in order, cut where one's parent is not the one before it."""
    chains: list[list[BlockStored]] = []
    for event in events:
        if chains and event.parent == chains[-1][-1].block_hash:
            chains[-1].append(event)
        else:
            chains.append([event])
    return chains
