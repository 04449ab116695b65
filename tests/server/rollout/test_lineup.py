"""Versions come, answer and go: who is asked, what waits for what, and what is refused."""

import asyncio
from contextlib import contextmanager

import pytest

from miniserve.core.sampling_params import SamplingParams
from miniserve.errors import InvalidRequestError, MiniserveError
from miniserve.server.errors import APIError
from miniserve.server.rollout.lineup import Lineup
from miniserve.server.rollout.traffic import Traffic
from miniserve.server.rollout.version import State, Version
from miniserve.server.view.records import Totals, Update
from support.asynchronous import run
from support.fake_backend import FakeBackend


class Made:
    """A lineup of versions "1" and "2", and what computes each."""

    def __init__(self, **how):
        self.backends = {}
        self.stable = []
        self.how = how
        self.lineup = Lineup("shop", [self.version("1"), self.version("2")], "1", on_stable=self.stable.append)

    def version(self, name):
        def make():
            self.backends[name] = FakeBackend(**self.how.get(f"v{name}", {}))
            return self.backends[name]

        return Version(name, make)


async def ask(lineup, model="shop", key="k", wanted=""):
    with lineup.pick(model, key, wanted) as (name, engine):
        return name, await engine.submit([[1]], SamplingParams(max_tokens=3))


async def read(reply):
    with reply:
        return [piece async for piece in reply]


@contextmanager
def refused(status, match):
    with pytest.raises(APIError, match=match) as caught:
        yield
    assert caught.value.status == status


def test_a_version_has_to_be_ready_before_it_gets_traffic():
    async def story():
        made = Made()
        lineup = made.lineup
        await lineup.start()
        assert lineup.ready
        assert [(name, state.ready) for name, state in zip("1", lineup.states, strict=True)] == [("1", True)]
        with refused(503, "version 2 is cold"):
            lineup.direct(Traffic("1", "2", 0.5))
        with refused(404, "shop has no version '3': there is 1, 2"):
            lineup.direct(Traffic("1", "3", 0.5))
        with refused(503, "version 2 is cold"):
            await ask(lineup, "shop@2")
        assert lineup.traffic == Traffic("1")
        await lineup.load("2")
        assert [(state.name, state.version, state.num_blocks) for state in lineup.states] == [
            ("1", "1", 16),
            ("2", "2", 16),
        ]
        lineup.direct(Traffic("1", "2", 1.0))
        assert (await ask(lineup))[0] == "2"
        assert (await ask(lineup, wanted="1"))[0] == "1" == (await ask(lineup, "shop@1"))[0]
        made.backends["2"].ready = False  # it has died; by weight nobody is sent there
        assert (await ask(lineup))[0] == "1"
        with refused(404, "there is no model 'other' here, only 'shop'"):
            await ask(lineup, "other")
        with refused(404, "no version '7'"):
            await ask(lineup, "shop@7")
        assert made.stable == []

    run(story())


def test_a_rollback_drops_nothing_and_the_version_goes_when_its_last_reply_has_ended():
    async def story():
        made = Made()
        lineup = made.lineup
        await lineup.start()
        await lineup.load("2")
        lineup.direct(lineup.traffic.promoted("2"))
        made.backends["2"].go.clear()
        asked = [await ask(lineup) for _ in range(8)]
        assert {name for name, _ in asked} == {"2"}
        with lineup.pick("shop", "late") as (name, engine):  # chosen, and its prompt is being read still
            lineup.direct(lineup.traffic.rolled_back())
            assert (await ask(lineup))[0] == "1"
            going = asyncio.create_task(lineup.unload("2"))
            await asyncio.sleep(0.1)
            assert (name, lineup.version("2").state) == ("2", State.DRAINING)
            with refused(503, "version 2 is draining"):
                await ask(lineup, "shop@2")
            late = await engine.submit([[1]], SamplingParams(max_tokens=3))
        await asyncio.sleep(0.1)
        assert not made.backends["2"].stopped
        made.backends["2"].go.set()
        for reply in [reply for _, reply in asked] + [late]:
            assert [piece.finish_reason for piece in await read(reply)] == ["length"]
        await asyncio.wait_for(going, 5)
        assert made.backends["2"].stopped
        assert lineup.version("2").state is State.COLD
        assert made.stable == ["2", "1"]

    run(story())


def test_who_gets_traffic_is_not_unloaded():
    async def story():
        made = Made()
        await made.lineup.start()
        await made.lineup.load("2")
        for traffic in (Traffic("1", "2", 0.1), Traffic("1", shadow="2"), Traffic("2")):
            made.lineup.direct(traffic)
            with refused(409, "version 2 gets traffic"):
                await made.lineup.unload("2")
        with refused(409, "version 1 is ready: it cannot be loaded now"):
            await made.lineup.load("1")
        await made.lineup.unload("1")
        with refused(409, "version 1 is cold: it cannot be unloaded now"):
            await made.lineup.unload("1")
        await made.lineup.load("1")

    run(story())


def test_what_cannot_be_loaded_has_failed_and_may_be_tried_again():
    async def story():
        made = Made(v2={"fails": MiniserveError("no such weights")})
        await made.lineup.start()
        with pytest.raises(MiniserveError, match="no such weights"):
            await made.lineup.load("2")
        version = made.lineup.version("2")
        assert (version.state, version.reason, made.backends["2"].stopped) == (State.FAILED, "no such weights", True)
        made.how = {}
        await made.lineup.load("2")
        assert (version.state, version.reason) == (State.READY, "")

    run(story())


def test_the_stable_version_has_to_load_and_a_warm_one_need_not():
    async def story():
        broken = {"fails": MiniserveError("no such weights")}
        made = Made(v1=broken)
        with pytest.raises(MiniserveError, match="no such weights"):
            await made.lineup.start()
        made = Made(v2=broken)
        made.lineup = Lineup("shop", [made.version("1"), made.version("2")], "1", warm=["1", "2"])
        await made.lineup.start()
        assert made.lineup.ready
        assert made.lineup.version("2").state is State.FAILED

    run(story())


def test_a_promotion_that_cannot_be_recorded_does_not_take_place():
    async def story():
        def full(_):
            raise MiniserveError("the disk is full")

        made = Made()
        lineup = Lineup("shop", [made.version("1"), made.version("2")], "1", on_stable=full)
        await lineup.start()
        await lineup.load("2")
        with pytest.raises(MiniserveError, match="disk is full"):
            lineup.direct(Traffic("2"))
        assert lineup.traffic.stable == "1"

    run(story())


def test_versions_that_come_later_are_seen():
    async def story():
        made = Made()
        come = []
        lineup = Lineup("shop", [made.version("1")], "1", newer=lambda known: [v for v in come if v.name not in known])
        await lineup.start()
        come.append(made.version("2"))
        with refused(404, "no version '2'"):
            await ask(lineup, "shop@2")
        await lineup.load("2")
        assert (await ask(lineup, "shop@2"))[0] == "2"
        assert [version.name for version in lineup.versions] == ["1", "2"]

    run(story())


def test_as_a_whole():
    async def story():
        made = Made()
        lineup, seen = made.lineup, []
        lineup.on_update = seen.append
        await lineup.start()
        lineup.watch(True)
        await lineup.load("2")
        assert [made.backends[name].watched for name in "12"] == [True, True]
        assert [state.name for state in lineup.states] == ["1", "2"]
        made.backends["2"].on_update(Update(0.0, [], 0, 16, [], Totals(*[0] * 8), [], {}, {}, 0.0))
        assert [update.engine for update in seen] == ["2"]
        lineup.draining = True
        assert made.backends["2"].draining
        with refused(503, "shutting down"):
            await ask(lineup)
        assert not lineup.ready
        await lineup.stop()
        assert all(each.stopped for each in made.backends.values())

    run(story())


def test_a_lineup_needs_its_stable_version():
    with pytest.raises(InvalidRequestError, match="shop has no version '1': there is none"):
        Lineup("shop", [], "1")


def test_a_tenants_kv_is_deleted_in_every_version_that_is_loaded():
    async def story():
        made = Made()
        await made.lineup.start()
        assert await made.lineup.delete_kv("salt") == {"device": 2, "disk": 3}
        await made.lineup.load("2")
        assert await made.lineup.delete_kv("salt") == {"device": 4, "disk": 6}
        made.backends["1"].ready = False
        with refused(503, "not ready"):
            await made.lineup.delete_kv("other")
        assert made.backends["2"].deleted == ["salt", "other"], "whoever can, does"

    run(story())
