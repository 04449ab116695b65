"""The router, with engines that are played here: in virtual time, dying whenever a test says so."""

import asyncio
import contextlib
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.core.disaggregation import Disaggregation
from miniserve.core.sampling_params import SamplingParams
from miniserve.errors import InvalidRequestError
from miniserve.server.errors import APIError
from miniserve.server.fleet.fleet import Fleet
from miniserve.server.fleet.journey import MOST_DEATHS
from miniserve.server.fleet.pools import RECOVERY_S
from miniserve.server.view.recorder import name_of
from miniserve.server.view.records import Totals, Update
from support.asynchronous import run_in_virtual_time
from support.played_engine import STEP_S, Engine, output


def play(story, prefill=1, decode=1, **options):
    async def inside():
        front = [Engine(f"p{index}") for index in range(prefill)]
        back = [Engine(f"d{index}") for index in range(decode)]
        options.setdefault("rule", Disaggregation(8))
        fleet = Fleet(front, back, max_waiting=4, **options)
        await fleet.start()
        found = await story(fleet, front, back)
        await asyncio.sleep(5)
        assert fleet.num_open == 0
        for engine, member in zip(front + back, fleet.members, strict=True):
            assert not engine.open, "nothing is computed for nobody"
            assert not engine.held, "nothing is kept for nobody"
            assert member.load.num_requests == 0
        return found

    return run_in_virtual_time(inside())


async def ask(fleet, prompt, count=6, n=1, seed=7):
    """Tokens and text of each choice, and how many were cached."""
    params = SamplingParams(max_tokens=count, seed=seed, n=n)
    tokens, texts, reasons, cached = ([[] for _ in range(n)], [""] * n, [None] * n, 0)
    spent_s = 0.0
    with await fleet.submit([prompt], params, cache_salt="salt") as reply:
        async for piece in reply:
            assert reasons[piece.choice] is None
            tokens[piece.choice] += piece.tokens
            texts[piece.choice] += piece.text
            reasons[piece.choice], cached = piece.finish_reason, piece.num_cached
            spent_s += piece.spent_s
    assert reasons == ["length"] * n
    assert spent_s == n * count, "what each engine spent on it is told, once"
    assert texts == ["".join(f"{each} " for each in some) for some in tokens]
    return SimpleNamespace(tokens=tokens, cached=cached)


def expected(prompt, count=6, n=1, seed=7):
    params = SamplingParams(seed=seed)
    return [output(prompt, params.seed_of(index), count) for index in range(n)]


LONG = list(range(100, 140))
SHORT = [1, 2, 3]


def test_a_long_prompt_is_computed_apart_and_decoded_elsewhere():
    async def story(fleet, front, back):
        said = await ask(fleet, LONG)
        assert said.tokens == expected(LONG)
        assert said.cached == 4, "as the engine says that computed it"
        assert (front[0].seen, back[0].seen) == (Counter(moves=1), Counter(fetches=1))

    play(story)


def test_what_was_left_is_given_up_once_it_has_been_fetched():
    async def story(fleet, front, back):
        asked = asyncio.create_task(ask(fleet, LONG, count=30))
        while not back[0].open:
            await asyncio.sleep(STEP_S / 2)
        assert len(front[0].held) == 1
        await asyncio.sleep(5 * STEP_S)
        assert back[0].open
        assert not front[0].open
        assert not front[0].held
        assert fleet.members[0].load.num_requests == 0
        await asked

    play(story)


def test_short_cached_and_one_token_prompts_stay():
    async def story(fleet, front, back):
        await ask(fleet, SHORT)
        await ask(fleet, LONG, count=1)
        assert front[0].seen == Counter()
        await ask(fleet, [*LONG, 5, 6])  # LONG is cached there
        assert (front[0].seen, back[0].seen) == (Counter(), Counter(computes=3))

    play(story)


def test_the_other_outputs_of_a_prompt_find_it_there():
    async def story(fleet, front, back):
        assert (await ask(fleet, LONG, n=3)).tokens == expected(LONG, n=3)
        assert (front[0].seen, back[0].seen) == (Counter(moves=1), Counter(fetches=1, computes=2))

    play(story)


def test_a_seed_is_fixed_where_none_is_given():
    """Or an engine that goes on with an output would draw others."""
    seeds = set()

    async def story(fleet, front, back):
        submit = back[0].submit

        async def seen(prompts, params, **options):
            seeds.add(params.seed)
            return await submit(prompts, params, **options)

        back[0].submit = seen
        await ask(fleet, SHORT, n=2, seed=None)

    play(story)
    assert len(seeds) == 2
    assert None not in seeds


@pytest.mark.parametrize("at_s", [0.05, 0.5, 1.15, 1.25, 1.35, 1.6, 1.8])
@pytest.mark.parametrize("which", ["prefill", "decode"])
def test_whoever_dies_whenever_no_token_is_lost_or_said_twice(which, at_s):
    async def story(fleet, front, back):
        asked = asyncio.create_task(ask(fleet, LONG))
        await asyncio.sleep(at_s)
        (front if which == "prefill" else back)[0].die(3.0)
        assert (await asked).tokens == expected(LONG)

    play(story)


@pytest.mark.parametrize("count", [2, 3])
def test_a_decode_engine_that_dies_while_the_kv_moves(count):
    """At every moment of it; with nobody else, the prefill engine goes on with what it has just left."""
    for at_s in range(10, 20):

        async def story(fleet, front, back, at_s=at_s / 10 + 0.05):
            asked = asyncio.create_task(ask(fleet, LONG, count=count))
            await asyncio.sleep(at_s)
            back[0].die(30.0)
            assert (await asked).tokens == expected(LONG, count=count)

        play(story)


deaths = st.lists(st.tuples(st.floats(0, 4), st.integers(0, 3), st.floats(0, 3)), max_size=2)
asked = st.lists(st.tuples(st.floats(0, 2), st.sampled_from([SHORT, LONG, LONG[:20]]), st.integers(1, 3)), max_size=3)


async def until_answered(fleet, prompt, n):
    """Asked again for as long as nobody is there."""
    while True:
        with contextlib.suppress(APIError):
            return (await ask(fleet, prompt, n=n)).tokens
        await asyncio.sleep(1)


@settings(max_examples=60, deadline=None)
@given(deaths, asked, st.booleans())
def test_any_deaths_any_requests(deaths, asked, leaves):
    async def story(fleet, front, back):
        engines, loop = front + back, asyncio.get_running_loop()
        for at_s, engine, for_s in deaths:
            loop.call_later(at_s, engines[engine].die, for_s)

        async def later(at_s, prompt, n):
            await asyncio.sleep(at_s)
            if leaves:
                with contextlib.suppress(TimeoutError, APIError):  # an error: it came while nobody was there
                    await asyncio.wait_for(ask(fleet, prompt, n=n), 1.0)
            else:
                assert await until_answered(fleet, prompt, n) == expected(prompt, n=n)

        await asyncio.gather(*(later(*each) for each in asked))

    play(story, prefill=2, decode=2)


def test_prefill_engines_decode_while_nobody_else_can():
    async def story(fleet, front, back):
        back[0].die(30.0)
        assert (await ask(fleet, LONG)).tokens == expected(LONG)
        assert front[0].seen == Counter(computes=1)
        assert fleet.ready

    play(story)


def test_who_computes_nothing_is_waited_for_within_a_limit():
    async def story(fleet, front, back):
        loop = asyncio.get_running_loop()
        asked = asyncio.create_task(ask(fleet, SHORT, count=50))
        await asyncio.sleep(1)
        for engine in front + back:
            engine.die(2 * RECOVERY_S)
        assert not fleet.ready
        with pytest.raises(APIError) as refused:
            await ask(fleet, SHORT)
        assert refused.value.status == 503
        began = loop.time()
        with pytest.raises(APIError, match="none came back") as caught:
            await asked
        assert caught.value.status == 503
        assert loop.time() - began == pytest.approx(RECOVERY_S, abs=0.2)
        await asyncio.sleep(RECOVERY_S + 1)
        assert (await ask(fleet, SHORT)).tokens == expected(SHORT)

    play(story)


def test_what_engines_die_of_is_given_up():
    async def story(fleet, front, back):
        with pytest.raises(APIError, match="the engine died"):
            await ask(fleet, [13, 13])
        assert sum(engine.num_restarts for engine in front + back) == MOST_DEATHS == fleet.num_restarts

    play(story)


def test_refusals_and_limits():
    async def story(fleet, front, back):
        with pytest.raises(InvalidRequestError, match="devil"):
            await ask(fleet, [666], n=2)
        with pytest.raises(APIError) as caught:
            await ask(fleet, SHORT, n=13)
        assert (caught.value.status, caught.value.param) == (400, "n")
        many = [asyncio.create_task(ask(fleet, SHORT)) for _ in range(12)]
        await asyncio.sleep(STEP_S / 2)
        with pytest.raises(APIError) as caught:
            await ask(fleet, SHORT)
        assert caught.value.status == 429
        await asyncio.gather(*many)
        fleet.draining = True
        with pytest.raises(APIError, match="shutting down"):
            await ask(fleet, SHORT)

    play(story)


def test_ending_tells_everybody():
    async def story(fleet, front, back):
        asked = asyncio.create_task(ask(fleet, LONG))
        await asyncio.sleep(1)
        await fleet.stop()
        with pytest.raises(APIError, match="shutting down"):
            await asked

    play(story)


def test_load_is_spread_and_shared_prompts_meet():
    async def story(fleet, front, back):
        await asyncio.gather(*(ask(fleet, [*range(base, base + 40)]) for base in (1000, 2000, 3000, 4000)))
        assert [engine.seen["moves"] for engine in front] == [2, 2]
        assert [engine.seen["fetches"] for engine in back] == [2, 2]

    play(story, prefill=2, decode=2)


def test_a_prompt_goes_where_its_own_tenant_has_sent_it_and_no_other():
    """By a router that looks at nothing but what is cached: another tenant's copy of the prompt attracts nobody."""
    asked = [*range(1000, 1040)]

    class Cached:
        def choose(self, hashes, block_size, engines):
            seen.append([engine.cached_blocks(hashes) for engine in engines])
            return 0

    async def story(fleet, front, back):
        for salt in ("salt", "salt", "another", ""):  # the engines played here keep blocks as of the first
            with await fleet.submit([asked], SamplingParams(max_tokens=2, seed=7), cache_salt=salt) as reply:
                async for _ in reply:
                    pass

    seen = []
    play(story, prefill=0, decode=1, decode_router=Cached())
    assert [found for (found,) in seen] == [0, 9, 0, 0]  # its last token is always computed


def test_a_request_has_one_name_in_every_engine():
    """The one that its client is told: watching one engine alone, or several, says the same."""

    async def story(fleet, front, back):
        with await fleet.submit([SHORT, LONG], SamplingParams(max_tokens=4, n=2, seed=7), cache_salt="salt") as reply:
            assert {piece.choice async for piece in reply} == {0, 1, 2, 3}
        key = reply.key
        assert {name_of(name) for name in back[0].names} == {f"{key}/0", f"{key}/1", f"{key}.1/0", f"{key}.1/1"}
        assert {name_of(name) for name in front[0].names} == {f"{key}.1/0"}
        await ask(fleet, LONG)
        assert name_of(back[0].names[-1]) == str(key + 1)

    play(story)


def test_every_engine_is_watched():
    async def story(fleet, front, back):
        told = []
        fleet.on_update = told.append
        fleet.watch(True)
        for engine in front + back:
            assert engine.watched == [True]
            engine.on_update(Update(1.0, [], 0, 16, [], Totals(*[0] * 8), [], {}, {}, 0.0))
        assert [update.engine for update in told] == ["prefill 0", "decode 0", "decode 1"]
        back[1].die(1.0)
        assert [(each.name, each.ready, each.restarts) for each in fleet.states] == [
            ("prefill 0", True, 0), ("decode 0", True, 0), ("decode 1", False, 1),
        ]  # fmt: skip

    play(story, decode=2)


def test_a_fleet_needs_an_engine_that_decodes():
    with pytest.raises(InvalidRequestError, match="no engine that decodes"):
        Fleet([], [], max_waiting=1)


def test_a_tenants_kv_is_deleted_in_every_engine():
    async def story(fleet, front, back):
        async def deleted(salt):
            return {"device": len(salt)}

        async def away(salt):
            raise APIError(503, "the engine is not there")

        for engine in (*front, *back):
            engine.delete_kv = deleted
        assert await fleet.delete_kv("salt") == {"device": 12}
        front[0].delete_kv = away
        with pytest.raises(APIError, match="not there"):
            await fleet.delete_kv("salt")

    play(story, prefill=1, decode=2)
