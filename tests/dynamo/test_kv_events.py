"""What a KV-aware router believes of an engine's cache, after whatever the engine's scheduler did."""

from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.core.block_pool import BlockPool, BlockStored
from miniserve.core.hashing import block_hash, root_hash
from miniserve.dynamo.kv_events import CacheTeller, router_hash

SIZE = 4


class Listener:
    """A router's index: refuses what it cannot place, as then it would silently route by load alone."""

    def __init__(self):
        self.tokens, self.parents, self.messages = {}, {}, 0

    def publish_stored(self, *, token_ids, num_block_tokens, block_hashes, parent_hash):
        self.messages += 1
        assert num_block_tokens == [SIZE] * len(block_hashes)
        assert len(token_ids) == SIZE * len(block_hashes)
        for index, each in enumerate(block_hashes):
            self.tokens[each] = token_ids[index * SIZE : (index + 1) * SIZE]
            self.parents[each] = parent_hash
            parent_hash = each

    def publish_removed(self, *, block_hashes):
        self.messages += 1
        for each in block_hashes:
            del self.tokens[each]


def chain(tokens):
    """Events of a prompt's blocks."""
    events, parent = [], None
    for at in range(0, len(tokens), SIZE):
        ids = tokens[at : at + SIZE]
        content = block_hash(parent or root_hash("model", ""), ids)
        events.append(BlockStored(content, parent, ids))
        parent = content
    return events


def test_a_prompt_is_one_message_and_its_blocks_follow_one_another():
    listener = Listener()
    events = chain(list(range(12)))
    CacheTeller(listener).tell(events)
    names = [router_hash(event.block_hash) for event in events]
    assert listener.messages == 1
    assert [listener.parents[name] for name in names] == [None, *names[:-1]]
    assert [token for name in names for token in listener.tokens[name]] == list(range(12))


def test_what_continues_an_earlier_prompt_names_its_parent():
    listener = Listener()
    teller, events = CacheTeller(listener), chain(list(range(12)))
    teller.tell(events[:1])
    teller.tell(events[1:])
    assert listener.parents[router_hash(events[1].block_hash)] == router_hash(events[0].block_hash)


def test_two_prompts_of_one_step_are_two_messages():
    listener = Listener()
    one, other = chain([1] * 8), chain([2] * 8)
    CacheTeller(listener).tell([*one, *other])
    assert listener.messages == 2
    assert listener.parents[router_hash(other[0].block_hash)] is None


def test_an_engine_that_died_has_nothing():
    listener = Listener()
    teller = CacheTeller(listener)
    teller.tell(chain([1] * 8))
    teller.tell([], from_nothing=True)
    assert not listener.tokens
    teller.tell(chain([2] * 4), from_nothing=True)
    assert len(listener.tokens) == 1


def test_names_are_numbers_of_64_bits():
    for token in range(50):
        assert -(2**63) <= router_hash(block_hash(b"", [token])) < 2**63


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=4), st.booleans()), max_size=30))
def test_the_router_believes_what_the_pool_has(steps):
    events, seen = [], set()
    pool = BlockPool(6, SIZE, on_event=events.append)
    listener = Listener()
    teller = CacheTeller(listener)
    for prompt, tell_now in steps:
        parent, blocks = None, []
        for token in prompt:
            ids = [token] * SIZE
            content = block_hash(parent or root_hash("model"), ids)
            seen.add(content)
            if found := pool.find([content]):
                pool.share(found)
                blocks += found
            elif fresh := pool.allocate(1):
                pool.register(fresh[0], content, parent, ids)
                blocks += fresh
            else:
                break
            parent = content
        pool.release(blocks)
        if tell_now:
            teller.tell(events)
            events.clear()
    teller.tell(events)
    assert set(listener.tokens) == {router_hash(content) for content in seen if pool.find([content])}
