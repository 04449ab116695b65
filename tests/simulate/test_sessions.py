"""A load of sessions: what can be found in it, that nothing is found twice over, and when it has settled."""

import random
from collections.abc import Iterator
from functools import cache
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniserve.simulate.sessions import SETTLED, SharedLoad, passes
from miniserve.workloads.arrivals import Arrival
from miniserve.workloads.presets import prefix_reuse, preset, with_turns
from miniserve.workloads.service import SLO

SIZE = 10


@cache
def load(name: str) -> SharedLoad:
    return SharedLoad.of(lambda: preset(name, random.Random(0)), SLO(), 0.95, 64)


def talks(turns: int, added: int = 20):
    """Without end; nothing is shared between two."""
    number = 0
    while True:
        later = None
        for turn in reversed(range(turns)):
            names = tuple(range(1000 * number, 1000 * number + (turn + 1) * added // SIZE))
            later = Arrival(1.0, (turn + 1) * added, 5, names, SIZE, later)
        yield later
        number += 1


@pytest.mark.parametrize(("turns", "found"), [(1, 0), (2, 10), (4, 30)])
def test_what_an_endless_cache_would_have_of_a_prompt(turns, found):
    """All but what a turn adds, which the turn before has left: of n turns n - 1 find 20, 40, … tokens."""
    made = SharedLoad.of(lambda: talks(turns), SLO(), 0.95, 64)
    assert made.found == found
    assert made.shares == (turns > 1)
    assert made.easiest == 20
    assert made.user == ("session" if turns > 1 else "user")


def test_it_is_about_what_the_presets_own_count_says():
    """Which is of blocks, the last of each prompt included; both of some hundred turns."""
    made = load("agentic")
    names, total = prefix_reuse(islice(preset("agentic", random.Random(0)), 60))
    assert made.found / made.prompt == pytest.approx(names / total, abs=0.02)
    again = [SharedLoad.of(lambda seed=seed: preset("chat", random.Random(seed)), SLO(), 0.95, 64) for seed in (0, 1)]
    assert again[0].requests == load("chat").requests != again[1].requests


def test_of_a_block_that_a_prompt_ends_in_its_tokens_are_found():
    turns = Arrival(0.0, 25, 1, (0, 1, 2), SIZE, Arrival(1.0, 38, 1, (0, 1, 2, 3), SIZE))
    made = SharedLoad([turns, turns.then], SLO(), draw=lambda: iter([turns]))
    assert made._found == [0, 25]


def test_caches_that_fill_slowly_are_given_time():
    """Two hundred documents have to be read once before their readers find them; a talk finds itself at once."""
    assert load("chat").settling == load("agentic").settling == 64
    rag = load("rag")
    assert 256 <= rag.settling <= 1024
    assert rag._share(rag.settling, 2 * rag.settling) > rag._share(1024, 2048) - SETTLED
    assert rag._share(64, 128) < rag._share(1024, 2048) - SETTLED
    assert (rag.warmup(10), rag.warmup(2000)) == (rag.settling, 4000)
    assert (rag.counted(10), rag.counted(100)) == (64, 100)


@given(st.integers(1, 60))
def test_sessions_are_joined_as_they_are_found_under_way(users):
    """Of talks of 8 turns and of 2, in turn, four of five that are under way are of the long ones, of any age."""

    def both() -> Iterator[Arrival]:
        for number, (long, short) in enumerate(zip(talks(8), talks(2), strict=False)):
            yield from (each._replace(output_tokens=100 + number) for each in (long, short))

    made = SharedLoad(list(islice(with_turns(both(), 100), 100)), SLO(), draw=both)
    assert made._longest == 8
    first = list(islice(made.arrivals(users), users))
    left = [len(list(with_turns(iter([each]), 1))) for each in first]
    ages = [each.prompt_tokens // 20 for each in first]
    long = [age + more == 9 for age, more in zip(ages, left, strict=True)]
    assert all(age + more in (9, 3) for age, more in zip(ages, left, strict=True))
    assert abs(sum(long) - 0.8 * users) <= 1
    assert list(islice(made.arrivals(users), users)) == first
    joined, later = first, next(islice(made.arrivals(users), users, None))
    assert later.output_tokens >= max(100, joined[-1].output_tokens), "those that come after have not been there yet"
    assert later.prompt_tokens == 20


@given(
    st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=5, unique=True), min_size=1, max_size=8),
    st.integers(2, 4),
)
def test_another_pass_over_a_trace_finds_nothing_of_the_one_before(names, times):
    trace = [Arrival(3.0, SIZE * len(each), 1, tuple(each), SIZE) for each in names]
    stream = list(islice(passes(trace), times * len(trace)))
    seen = [
        {name for each in stream[at : at + len(trace)] for name in each.blocks}
        for at in range(0, len(stream), len(trace))
    ]
    assert all(not one & other for at, one in enumerate(seen) for other in seen[:at])
    found, total = prefix_reuse(iter(trace))
    assert prefix_reuse(iter(stream)) == (times * found, times * total)
    assert all(each.at_s == 0 for each in stream)
    assert list(with_turns(iter(stream[: len(trace)]), 99)) == [each._replace(at_s=0.0) for each in trace]
