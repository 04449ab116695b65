"""Policies on engines that say what a test wants."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from miniserve.core.routing import KVAware, LeastLoaded, Load, RoundRobin


@dataclass
class Engine:
    load: Load
    cached: int = 0

    def cached_blocks(self, hashes):
        return min(self.cached, len(hashes))


HASHES = [bytes([at]) * 32 for at in range(10)]
IDLE = Load(0, 0, 0)
engines = st.lists(
    st.builds(Engine, st.builds(Load, st.integers(0, 500), st.integers(0, 50), st.integers(0, 9)), st.integers(0, 10)),
    min_size=1, max_size=6,
)  # fmt: skip


def test_in_turn():
    router = RoundRobin()
    assert [router.choose((), 16, [Engine(IDLE)] * 3) for _ in range(5)] == [0, 1, 2, 0, 1]


@given(engines)
def test_least_loaded_has_the_fewest_requests(some):
    assert some[LeastLoaded().choose(HASHES, 16, some)].load.num_requests == min(e.load.num_requests for e in some)


@given(engines, st.floats(0, 5))
def test_kv_aware_takes_the_least_cost(some, weight):
    def cost(engine):
        return weight * (engine.load.prompt_tokens / 16 + 10 - engine.cached) + engine.load.used_blocks

    assert cost(some[KVAware(weight).choose(HASHES, 16, some)]) == min(map(cost, some))


def test_what_is_cached_outweighs_some_load_and_not_any():
    busy = Engine(Load(0, 8, 1), cached=10)
    assert KVAware().choose(HASHES, 16, [Engine(IDLE), busy]) == 1
    assert KVAware().choose(HASHES, 16, [Engine(IDLE), Engine(Load(0, 12, 1), cached=10)]) == 0
    assert KVAware(overlap_weight=0).choose(HASHES, 16, [busy, Engine(IDLE)]) == 1


def test_equal_engines_take_turns():
    for router in (LeastLoaded(), KVAware()):
        assert sorted(router.choose(HASHES, 16, [Engine(IDLE)] * 4) for _ in range(4)) == [0, 1, 2, 3]
