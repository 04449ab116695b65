"""The block pool under random use, against a plain model of what it should remember."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from miniserve.core.block_pool import BlockPool, BlockRemoved, BlockStored
from miniserve.core.hashing import block_hash, root_hash
from miniserve.errors import InvalidRequestError

ROOT = root_hash("model")


def chain(*parts):
    """The hashes of consecutive blocks holding `parts`."""
    hashes, parent = [], ROOT
    for part in parts:
        parent = block_hash(parent, part)
        hashes.append(parent)
    return hashes


def test_a_reused_block_is_no_longer_found():
    pool = BlockPool(2, 4)
    (first,) = pool.allocate(1)
    (content,) = chain([1, 2, 3, 4])
    pool.register(first, content)
    pool.release([first])
    assert pool.find([content]) == [first]  # freed, but still there
    taken = pool.allocate(2)
    assert set(taken) == {0, 1}
    assert pool.find([content]) == []
    pool.check()


def test_longest_free_is_taken_first_and_a_tail_before_its_head():
    pool = BlockPool(4, 4)
    table = pool.allocate(3)
    pool.release(table)
    assert pool.allocate(4) == [3, table[2], table[1], table[0]]


def test_sharing_takes_a_block_off_the_free_list_once():
    pool = BlockPool(3, 4)
    (block,) = pool.allocate(1)
    (content,) = chain([7, 7, 7, 7])
    pool.register(block, content)
    pool.release([block])
    for _ in range(3):
        pool.share(pool.find([content]))
    assert pool.num_free == 2
    for _ in range(3):
        assert not pool.is_free(block)
        pool.release([block])
    assert pool.is_free(block)
    assert pool.num_free == 3
    pool.check()


def test_two_blocks_of_equal_content_stay_apart():
    pool = BlockPool(2, 4)
    one, two = pool.allocate(2)
    (content,) = chain([1, 1, 1, 1])
    pool.register(one, content)
    pool.register(two, content)
    assert pool.find([content]) == [one]
    pool.release([one])
    pool.release([two])
    pool.allocate(1)  # takes `one`, the longest free, and its hash with it
    assert pool.find([content]) == []
    pool.check()


def test_find_stops_at_the_first_gap():
    pool = BlockPool(4, 2)
    hashes = chain([1, 2], [3, 4], [5, 6])
    blocks = pool.allocate(3)
    for block, content in zip(blocks, hashes, strict=True):
        pool.register(block, content)
    assert pool.find([hashes[0], b"nothing", hashes[2]]) == blocks[:1]


def test_too_few_blocks_changes_nothing():
    pool = BlockPool(3, 4)
    pool.allocate(2)
    assert pool.allocate(2) is None
    assert pool.num_free == 1
    pool.check()


def test_nonsense_is_refused():
    for count, size in ((0, 4), (4, 0), (-1, 4)):
        with pytest.raises(InvalidRequestError, match="a pool needs blocks"):
            BlockPool(count, size)
    pool = BlockPool(1, 4)
    with pytest.raises(AssertionError, match="released more often"):
        pool.release([0])


def test_identity_covers_parent_tokens_and_keys():
    same = block_hash(ROOT, [1, 2, 3])
    assert same == block_hash(ROOT, [1, 2, 3])
    others = [
        block_hash(ROOT, [1, 2, 4]),
        block_hash(ROOT, [1, 2]),
        block_hash(same, [1, 2, 3]),
        block_hash(root_hash("model", "salt"), [1, 2, 3]),
        block_hash(root_hash("other"), [1, 2, 3]),
    ]
    assert len({same, *others}) == 6
    assert len({root_hash("ab", "c"), root_hash("a", "bc"), root_hash("abc"), root_hash("abc", "")}) == 4


class PoolMachine(RuleBasedStateMachine):
    """Random tables of blocks over few contents, so that sharing, eviction and duplicates all happen."""

    def __init__(self):
        super().__init__()
        self.findable = set()
        self.pool = BlockPool(6, 2, on_event=self.hear)
        self.tables = []

    def hear(self, event):
        if isinstance(event, BlockStored):
            assert event.block_hash not in self.findable, "stored twice without a removal"
            self.findable.add(event.block_hash)
        else:
            assert isinstance(event, BlockRemoved)
            self.findable.remove(event.block_hash)

    @rule(parts=st.lists(st.sampled_from([(1, 1), (2, 2), (3, 3)]), min_size=1, max_size=4), full=st.booleans())
    def admit(self, parts, full):
        hashes = chain(*parts)
        shared = self.pool.find(hashes)
        self.pool.share(shared)
        fresh = self.pool.allocate(len(hashes) - len(shared))
        if fresh is None:
            self.pool.release(shared)
            return
        table = shared + fresh
        assert len(set(table)) == len(table), "one table never holds a block twice"
        for block, content in zip(table, hashes if full else hashes[:-1], strict=False):
            self.pool.register(block, content)
        self.tables.append(table)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def finish(self, data):
        self.pool.release(self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1))))

    @rule()
    def clear(self):
        self.pool.clear_cache()
        assert not self.findable

    @invariant()
    def sound(self):
        self.pool.check()
        used = {block for table in self.tables for block in table}
        assert self.pool.num_free == self.pool.num_blocks - len(used)
        assert all(len(self.pool.find([content])) == 1 for content in self.findable)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(derandomize=True, deadline=None, max_examples=80, stateful_step_count=40)


def test_one_salts_content_is_forgotten_and_no_other():
    heard = []
    pool = BlockPool(4, 2, heard.append)
    mine, theirs, used = pool.allocate(3)
    for block, content, salt in ((mine, b"m", "a"), (theirs, b"t", "b"), (used, b"u", "a")):
        pool.register(block, content, salt=salt)
    pool.release([mine, theirs])
    heard.clear()
    assert pool.clear_cache("a") == 2
    assert heard == [BlockRemoved(b"m"), BlockRemoved(b"u")]
    assert [pool.find([content]) for content in (b"m", b"t", b"u")] == [[], [theirs], []]
    pool.check()
    pool.release([used])
    for block in pool.allocate(4):
        pool.register(block, bytes([block]))
    assert pool.clear_cache("b") == 0, "whose a block was is forgotten with what it held"
    pool.check()
