"""`BlockPool`: hands out KV blocks, shares them between requests, and remembers what freed ones hold.

A block is an integer; its memory is somebody else's. Each is in exactly one state:

    in use   reference count > 0; one or several requests have it in their block table
    free     reference count 0, on the free list, least recently freed first

A block, in use or free, may also be *cached*: its content is complete and known by its hash, so that another request
can `share` it. A free block stays cached until it is handed out again, and at that moment its hash is forgotten: a
lookup never finds content that is about to be overwritten. Two blocks may hold equal content; the first to be
registered is the cached one.

`check()` states the invariants. The pool knows nothing of requests, tokens or time.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from miniserve.core.hashing import BlockHash
from miniserve.errors import InvalidRequestError


class BlockStored(NamedTuple):
    """A block's content became findable under `block_hash`.

    Attributes:
        parent: of the block before it in its sequence; None for the first.
        token_ids: whose KV it is.
    """

    block_hash: BlockHash
    parent: BlockHash | None
    token_ids: list[int]


class BlockRemoved(NamedTuple):
    """The content under `block_hash` is gone from this pool."""

    block_hash: BlockHash


BlockEvent = BlockStored | BlockRemoved


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens each.

    Args:
        num_blocks: how many there are.
        block_size: tokens a block holds.
        on_event: told of every hash that becomes findable or is forgotten, in order. May be set later.

    Example:
        >>> from miniserve.core.block_pool import BlockPool
        >>> from miniserve.core.hashing import block_hash, root_hash
        >>> pool = BlockPool(num_blocks=4, block_size=2)
        >>> first, second = pool.allocate(2)
        >>> content = block_hash(root_hash("a model"), [5, 6])
        >>> pool.register(first, content)
        >>> pool.release([first, second])
        >>> pool.num_free, pool.find([content]) == [first]
        (4, True)
        >>> pool.share([first])
        >>> pool.num_free
        3
    """

    def __init__(self, num_blocks: int, block_size: int, on_event: Callable[[BlockEvent], None] | None = None) -> None:
        if num_blocks < 1 or block_size < 1:
            raise InvalidRequestError(f"a pool needs blocks of at least one token, not {num_blocks} of {block_size}")
        self.num_blocks, self.block_size = num_blocks, block_size
        self._references = [0] * num_blocks
        self._hash_of: list[BlockHash | None] = [None] * num_blocks
        self._salt_of = [""] * num_blocks  # of cached ones
        self._cached: dict[BlockHash, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self.on_event = on_event

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` could hand out now."""
        return len(self._free)

    def is_free(self, block: int) -> bool:
        """Whether nobody uses the block."""
        return self._references[block] == 0

    def is_cached(self, block: int) -> bool:
        """Whether the block's content can be found by its hash."""
        return self._hash_of[block] is not None

    @property
    def cached_blocks(self) -> Collection[int]:
        """The blocks whose content can be found by its hash."""
        return self._cached.values()

    def find(self, hashes: Iterable[BlockHash]) -> list[int]:
        """The cached blocks of the longest prefix of `hashes` that is here. Takes none of them."""
        blocks = []
        for wanted in hashes:
            block = self._cached.get(wanted)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def share(self, blocks: Sequence[int]) -> None:
        """Take cached blocks that `find` returned: one more reference each."""
        for block in blocks:
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks with one reference each, the longest-free first; None, and no change, if there are too few."""
        if count > len(self._free):
            return None
        blocks = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._references[block] = 1
            blocks.append(block)
        return blocks

    def release(self, blocks: Sequence[int]) -> None:
        """Give back one reference each, in the order of a block table.

        They join the free list last block first: the end of a sequence is the least likely to be shared again, and a
        block is of no use to anyone without those before it.
        """
        for block in reversed(blocks):
            assert self._references[block] > 0, f"block {block} released more often than taken"
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None

    def register(
        self,
        block: int,
        content: BlockHash,
        parent: BlockHash | None = None,
        token_ids: Sequence[int] = (),
        salt: str = "",
    ) -> None:
        """The block is full and computed: make it findable, unless an equal one already is.

        `parent` and `token_ids` are for whoever hears of it, `salt` says whose it is.
        """
        assert self._references[block] > 0, f"block {block} registered while nobody uses it"
        if self._hash_of[block] is None and content not in self._cached:
            self._hash_of[block], self._salt_of[block] = content, salt
            self._cached[content] = block
            if self.on_event:
                self.on_event(BlockStored(content, parent, list(token_ids)))

    def clear_cache(self, salt: str | None = None) -> int:
        """Forget all content, or that of one salt. Blocks in use stay in use. Returns how many it was."""
        wanted = [block for block in self._cached.values() if salt is None or self._salt_of[block] == salt]
        for block in wanted:
            self._forget(block)
        return len(wanted)

    def check(self) -> None:
        """Raise AssertionError unless the pool's invariants hold. Cost: one pass over all blocks."""
        assert all(count >= 0 for count in self._references)
        free = [block for block in range(self.num_blocks) if self._references[block] == 0]
        assert sorted(self._free) == free, "the free list is exactly the blocks without references"
        assert all(self._hash_of[block] == content for content, block in self._cached.items())
        hashed = [block for block, content in enumerate(self._hash_of) if content is not None]
        assert sorted(self._cached.values()) == hashed, "every hash leads to one block, and back"

    def _forget(self, block: int) -> None:
        content = self._hash_of[block]
        if content is not None:
            self._hash_of[block] = None
            del self._cached[content]
            if self.on_event:
                self.on_event(BlockRemoved(content))
