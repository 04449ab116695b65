"""Engines that come and go with the load, played here in virtual time: no output notices, and none is left over."""

import asyncio

import pytest

from miniserve.core.disaggregation import Disaggregation
from miniserve.core.sampling_params import SamplingParams
from miniserve.core.scaling import Capacity, Counts, Planner
from miniserve.errors import InvalidRequestError, MiniserveError
from miniserve.server.fleet.fleet import Fleet
from miniserve.server.fleet.launcher import Launcher, parse_capacity, parse_range
from support.asynchronous import run_in_virtual_time
from support.played_engine import Engine, output

CAPACITY = Capacity(20.0, 2.0, 0.1)
LEAST, MOST = Counts(1, 1), Counts(3, 3)


def play(story, make=Engine, hold=4):
    """A story with a fleet whose engines come and go once a second, and all engines that there have been."""

    async def inside():
        engines = []

        def client():
            engines.append(make(f"p{len(engines)}"))
            return engines[-1]

        launcher = Launcher(Planner(lambda _: CAPACITY, LEAST, MOST, hold=hold), client, 1.0)
        first = [client() for _ in range(2)]
        fleet = Fleet(first[:1], first[1:], max_waiting=99, rule=Disaggregation(8), launcher=launcher)
        await fleet.start()
        await story(fleet, engines)
        await fleet.stop()
        assert not any(engine.ready or engine.open or engine.held for engine in engines)

    run_in_virtual_time(inside())


async def ask(fleet, at, count=30):
    """All its tokens, in order."""
    prompt, tokens = [1000 + at] * 40, []
    with await fleet.submit([prompt], SamplingParams(max_tokens=count, seed=at), cache_salt="salt") as reply:
        async for piece in reply:
            tokens += piece.tokens
    assert tokens == output(prompt, at, count)


def kinds(fleet):
    names = [member.name.split()[0] for member in fleet.members]
    return Counts(names.count("prefill"), names.count("decode"))


def test_they_come_in_a_rush_and_go_in_a_lull_and_no_output_notices():
    async def story(fleet, engines):
        seen = []
        for wave in range(3):
            asking = [asyncio.create_task(ask(fleet, 10 * wave + at)) for at in range(8)]
            await asyncio.sleep(2.5)
            seen.append(kinds(fleet))
            # One goes on all the time, so that engines leave while something is computed.
            for at in range(6):
                await ask(fleet, 100 + 10 * wave + at, 8)
            await asyncio.gather(*asking)
            await asyncio.sleep(6)
            assert kinds(fleet) == LEAST
        assert max(each.prefill for each in seen) > 1
        assert max(each.decode for each in seen) > 1
        assert len({member.name for member in fleet.members}) == 2
        assert sum(engine.ready for engine in engines) == 2, "whoever went has ended"

    play(story)


def test_one_that_goes_ends_what_it_has():
    """It takes nothing more meanwhile."""

    async def story(fleet, engines):
        long = [asyncio.create_task(ask(fleet, at, 200)) for at in range(3)]
        await asyncio.sleep(2.5)
        assert kinds(fleet).decode == 2
        for _ in range(12):
            await asyncio.sleep(1)
        going = [engine for engine in engines if engine.ready and all(m.client is not engine for m in fleet.members)]
        for engine in going:
            assert engine.open, "it is there only while it has something"
        await asyncio.gather(*long)

    play(story, hold=2)


def test_one_that_cannot_be_started_is_told_and_forgotten(caplog):
    class Broken(Engine):
        async def start(self):
            if self.name not in ("p0", "p1"):
                raise MiniserveError("no memory")
            await super().start()

    async def story(fleet, engines):
        await asyncio.gather(*(ask(fleet, at) for at in range(8)))
        assert kinds(fleet) == LEAST
        assert len(engines) > 2

    play(story, Broken)
    assert "an engine could not be started" in caplog.text


@pytest.mark.parametrize("text", ["", "1:2", "0:1:1", "a:1:1", "1:1:-1", "1:1:1:1"])
def test_nonsense_is_no_capacity(text):
    with pytest.raises(InvalidRequestError, match="TOKENS_PER_S:OUTPUTS:MS"):
        parse_capacity(text)
    assert parse_capacity("2000:8:40") == Capacity(2000.0, 8.0, 0.04)


@pytest.mark.parametrize("text", ["", "0", "3-1", "1-", "-1", "1-2-3", "x"])
def test_nonsense_is_no_range(text):
    with pytest.raises(InvalidRequestError, match="N nor LOW-HIGH"):
        parse_range(text, 1)
    assert parse_range("1-3", 1) == (1, 3)
    assert parse_range("0", 0) == (0, 0)
