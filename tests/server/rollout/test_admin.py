"""Orders that meet, and originals that are refused: the application around engines that are none."""

import asyncio
from types import SimpleNamespace

import httpx

from miniserve.server.access import Access
from miniserve.server.app import ServerSettings, make_app
from miniserve.server.errors import busy
from miniserve.server.rollout.admin import Control
from miniserve.server.rollout.lineup import Lineup
from miniserve.server.rollout.shadow import MAX_COPIES
from miniserve.server.rollout.traffic import Traffic
from miniserve.server.rollout.version import Version
from support.asynchronous import run
from support.fake_backend import FakeBackend


class Full(FakeBackend):
    async def submit(self, prompts, params, *, cache_salt=""):
        raise busy("too much to do")


async def served(stable, log):
    """A client of two versions, both loaded, and the lineup."""
    lineup = Lineup("shop", [Version("1", stable), Version("2", FakeBackend)], "1", warm=["2"])
    await lineup.start()
    app = make_app(lineup, ServerSettings(live_view=False), Access(), Control(Access(), log))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test"), lineup


def test_an_order_does_not_undo_a_rollback_that_came_while_it_was_written_down():
    async def story():
        lineups = []

        def append(who, what, /, **details):
            if what == "rollout.traffic":
                lineups[0].direct(Traffic("1"))

        client, lineup = await served(FakeBackend, SimpleNamespace(append=append))
        lineups.append(lineup)
        lineup.direct(Traffic("2", previous="1"))
        async with client:
            reply = await client.put("/admin/traffic", json={})
        assert reply.status_code == 200
        assert lineup.traffic.stable == "1"

    run(story())


def test_originals_that_are_refused_hold_no_place_of_copies():
    async def story():
        client, lineup = await served(Full, SimpleNamespace(append=lambda *_, **__: None))
        lineup.direct(Traffic("1", shadow="2"))
        body = {"model": "shop", "prompt": [1, 2], "max_tokens": 2, "temperature": 0}
        async with client:
            for _ in range(MAX_COPIES + 4):
                assert (await client.post("/v1/completions", json=body)).status_code == 429
                await asyncio.sleep(0.01)
            (_, shown) = (await client.get("/admin/versions")).json()["versions"]
        assert shown["copies"]["copies"] == MAX_COPIES + 4
        assert shown["copies"]["skipped"] == shown["copies"]["alike"] == shown["copies"]["different"] == 0

    run(story())
