"""`BlockTables`: the KV blocks of each request, from its admission until it ends or has to give them up.

A request takes blocks for all tokens it knows, first those that are found by their content, and grows by one when a
token has no slot. What fills up becomes findable, and in the end all go back at once: to the pool, or to the connector
first, if that wants to read some of them. For a draft a request may be lent blocks that it does not need yet. If the
draft was wrong they stay with the request, which needs them next, until somebody finds no free block.

Invariants: a block in use is in the table of a request that holds some, or held for the connector; a block becomes
findable only once it is full and computed, and only with tokens that are the request's.

Who gets blocks, and who must go for it, is the scheduler's to say. Which tokens are computed is the request's to know.
"""

from array import array
from collections.abc import Iterable, Sequence

from miniserve.core.block_pool import BlockPool
from miniserve.core.connector import KVConnector
from miniserve.core.hashing import BlockHash
from miniserve.core.request import Request
from miniserve.core.waiting import PendingBlocks


class BlockTables:
    """Who has which blocks of `pool`.

    Args:
        pool: the blocks.
        pending: told of what requests are going to fill, and have filled.
        connector: told of what is full, and of whose request has ended.
        prefix_caching: find, and make findable, full blocks by their content.
    """

    def __init__(self, pool: BlockPool, pending: PendingBlocks, connector: KVConnector, prefix_caching: bool) -> None:
        self.pool, self.prefix_caching = pool, prefix_caching
        self._pending, self._connector = pending, connector
        self._holders: dict[Request, None] = {}
        self._lent: dict[Request, None] = {}  # who may have more than its tokens need
        self._held: list[int] = []  # blocks the connector still reads

    @property
    def any_held(self) -> bool:
        """Whether the connector still reads any block."""
        return bool(self._held)

    def needed(self, num_tokens: int) -> int:
        """How many blocks so many tokens need."""
        return -(-num_tokens // self.pool.block_size)

    def reusable(self, request: Request) -> list[BlockHash]:
        """The full blocks that could be found rather than computed: all before the last token, which is computed."""
        if not self.prefix_caching or not request.may_skip_prompt:
            return []
        count = (len(request.token_ids) - 1) // self.pool.block_size
        return request.block_hashes(self.pool.block_size, count)[:count]

    def lacks(self, request: Request) -> bool:
        """Whether its next token has no slot."""
        return request.num_computed == len(request.block_table) * self.pool.block_size and not request.is_ending

    def take(self, request: Request, shared: Sequence[int]) -> bool:
        """Blocks for all tokens of a request, the `shared` ones first; False, and no change, if there are too few."""
        self.pool.share(shared)
        fresh = self._allocate(self.needed(len(request.token_ids)) - len(shared))
        if fresh is None:
            self.pool.release(shared)
            return False
        request.block_table = array("i", [*shared, *fresh])
        request.num_computed, request.num_registered = len(shared) * self.pool.block_size, len(shared)
        self._holders[request] = None
        self._pending.claim(request, self.reusable(request)[len(shared) :])
        return True

    def grow(self, request: Request) -> bool:
        """One more block; False if there is none."""
        blocks = self._allocate(1)
        request.block_table.extend(blocks or ())
        return blocks is not None

    def lend(self, request: Request, num_tokens: int) -> int:
        """Blocks for a draft of so many tokens, if they are free. Returns how many tokens of it have a slot."""
        length, table = len(request.token_ids), request.block_table
        table.extend(self.pool.allocate(max(self.needed(length + num_tokens) - len(table), 0)) or ())
        self._lent[request] = None
        return min(num_tokens, len(table) * self.pool.block_size - length)

    def filled(self, request: Request, num_tokens: int) -> None:
        """The first `num_tokens` are computed: make the blocks that are full findable, and tell the connector."""
        first, full = request.num_registered, num_tokens // self.pool.block_size
        if not self.prefix_caching or full <= first:
            return
        size, hashes = self.pool.block_size, request.block_hashes(self.pool.block_size, full)
        for index in range(first, full):
            parent, token_ids = (
                hashes[index - 1] if index else None,
                request.token_ids[index * size : (index + 1) * size],
            )
            if request.may_share:
                self.pool.register(request.block_table[index], hashes[index], parent, token_ids, request.salt)
        request.num_registered = full
        self._pending.settle(request, hashes[first:full])
        if request.may_share:
            self._hold(self._connector.computed(request, first))

    def forget(self, salt: str) -> int:
        """Nobody finds any more what this tenant has cached, nor what those who hold its blocks now go on to fill.

        Returns how many blocks could be found.
        """
        for request in self._holders:
            if request.salt == salt:
                request.may_share = False
        return self.pool.clear_cache(salt)

    def end(self, request: Request) -> None:
        """The request has ended: give its blocks back, but for those that the connector keeps for a peer."""
        self._hold(self._connector.finished(request))
        self.give_back(request)

    def give_back(self, request: Request) -> None:
        """Let go of all its blocks, and of its claim to those it would have filled."""
        self.pool.release(request.block_table)
        request.block_table = array("i")
        del self._holders[request]
        self._lent.pop(request, None)
        self._pending.settle(request, self.reusable(request)[request.num_registered :])

    def let_go(self, blocks: Iterable[int]) -> None:
        """The connector has read these, one entry a hold."""
        for block in blocks:
            self._held.remove(block)
            self.pool.release([block])

    def check(self, holders: Iterable[Request]) -> None:
        """Raise AssertionError unless just these hold blocks, and the pool agrees. For tests; cost: all blocks."""
        self.pool.check()
        self._pending.check()
        assert set(self._holders) == set(holders)
        assert self._lent.keys() <= self._holders.keys()
        for request in self._holders:
            assert request.num_registered * self.pool.block_size <= request.num_computed
            assert (
                max(len(request.token_ids) - 1, request.num_computed) <= len(request.block_table) * self.pool.block_size
            )
            assert len(set(request.block_table)) == len(request.block_table)
        used = {block for request in self._holders for block in request.block_table} | set(self._held)
        assert len(used) == self.pool.num_blocks - self.pool.num_free, (
            "every block in use is in a request's table, or held by the connector"
        )

    def _allocate(self, count: int) -> list[int] | None:
        """Free blocks, or those that wrong drafts left behind; None, if both are too few."""
        blocks = self.pool.allocate(count)
        if blocks is None and self._lent:
            for request in self._lent:
                needed = self.needed(len(request.token_ids))
                self.pool.release(request.block_table[needed:])
                del request.block_table[needed:]
            self._lent.clear()
            blocks = self.pool.allocate(count)
        return blocks

    def _hold(self, blocks: Sequence[int]) -> None:
        if blocks:
            self.pool.share(blocks)
            self._held.extend(blocks)
