"""Who may watch, what a slow watcher gets, and that nothing runs for nobody."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from miniserve.server.access import Access, hash_key, new_key
from miniserve.server.app import ServerSettings, make_app
from miniserve.server.errors import APIError
from miniserve.server.messages import Facts
from miniserve.server.rollout.lineup import Lineup
from miniserve.server.rollout.version import Version
from miniserve.server.view import watchers as module
from miniserve.server.view.records import EngineState, Totals, Update
from miniserve.server.view.watchers import MAX_WATCHERS, Watchers
from support.asynchronous import run


class FakeClient:
    """As much of an `EngineClient` as is watched."""

    def __init__(self):
        self.facts = Facts("a tiny engine", 64, 4, 32, 16, 4)
        self.draining, self.ready, self.num_restarts, self.num_open = False, True, 0, 0
        self.told = []
        self.watch = self.told.append
        self.names = [""]

    @property
    def states(self):
        return [EngineState(name, self.ready, self.num_restarts) for name in self.names]

    def say(self, at_s, engine=""):
        self.on_update(Update(at_s, [], 0, 16, [], Totals(*[0] * 8), [], {}, {}, 0.0, engine=engine))


def all_parsed(events):
    several = [event.split("\n") for event in events.decode().strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in several]


def parsed(event):
    (one,) = all_parsed(event)
    return one


def test_the_engine_records_while_somebody_watches():
    async def story():
        client = FakeClient()
        watchers = Watchers(client, "tiny")
        first, second = watchers.events(), watchers.events()
        name, engine = parsed(await anext(first))
        assert (name, engine["state"], engine["budget"], engine["num_blocks"]) == ("engine", "ready", 32, 16)
        client.say(1.0)
        await anext(second)
        assert client.told == [True]
        assert parsed(await anext(second))[1]["at_s"] == 1.0  # who comes later is told how things are
        await first.aclose()
        assert client.told == [True]
        await second.aclose()
        assert client.told == [True, False]
        third = watchers.events()  # nothing old is kept for whoever comes next
        await anext(third)
        client.say(2.0)
        assert parsed(await anext(third))[1]["at_s"] == 2.0

    run(story())


def test_a_slow_watcher_gets_the_newest():
    async def story():
        client = FakeClient()
        slow = Watchers(client, "tiny").events()
        await anext(slow)
        for at_s in range(100):
            client.say(float(at_s))
        assert parsed(await anext(slow))[1]["at_s"] == 99.0
        waiting = asyncio.ensure_future(anext(slow))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        client.say(100.0)
        assert parsed(await waiting)[1]["at_s"] == 100.0

    run(story())


def test_of_several_engines_a_slow_watcher_gets_the_newest_of_each():
    async def story():
        client = FakeClient()
        client.names = ["prefill 0", "decode 0"]
        slow = Watchers(client, "tiny").events()
        assert [each["name"] for each in parsed(await anext(slow))[1]["engines"]] == client.names
        for at_s in range(10):
            for name in client.names:
                client.say(float(at_s), name)
        client.ready = False  # told first: what an engine said before it died is nothing to draw
        (name, engine), *updates = all_parsed(await anext(slow))
        assert (name, engine["engines"][1]["ready"]) == ("engine", False)
        assert [(name, each["engine"], each["at_s"]) for name, each in updates] == [
            ("update", name, 9.0) for name in client.names
        ]

    run(story())


def test_changes_of_the_engine_are_told_and_silence_is_broken(monkeypatch):
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    monkeypatch.setattr(module, "SILENCE_S", 0.05)

    async def story():
        client = FakeClient()
        events = Watchers(client, "tiny").events()
        await anext(events)
        client.ready, client.num_restarts = False, 1
        _, engine = parsed(await anext(events))
        assert (engine["state"], engine["restarts"]) == ("starting", 1)
        assert (await anext(events)).startswith(b":")
        client.draining, client.num_open = True, 1
        assert parsed(await anext(events))[1]["state"] == "draining"
        assert (await anext(events)).startswith(b":")  # while requests go on
        client.num_open = 0
        with pytest.raises(StopAsyncIteration):
            await anext(events)
        assert client.told == [True, False]

    run(story())


def test_there_is_room_for_so_many():
    async def story():
        watchers = Watchers(FakeClient(), "tiny")
        streams = [watchers.events() for _ in range(MAX_WATCHERS)]
        for stream in streams:
            watchers.check_room()
            await anext(stream)
        with pytest.raises(APIError) as caught:
            watchers.check_room()
        assert caught.value.status == 429
        await streams[0].aclose()
        watchers.check_room()

    run(story())


def events_of(server, key, count):
    """The first events of a stream; or the status, if it is refused."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with server.http.stream("GET", "/view/events", headers=headers) as reply:
        if reply.status_code != 200:
            return reply.status_code
        found, name = [], ""
        for line in reply.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                found.append(SimpleNamespace(name=name, data=json.loads(line.removeprefix("data: "))))
            if len(found) == count:
                return found
    return found


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    made = {"admin": new_key(), "tenant": new_key()}
    path.write_text(
        f'[admin]\nsha256 = "{hash_key(made["admin"])}"\nwatch = true\n[tenant]\nsha256 = "{hash_key(made["tenant"])}"\n'
    )
    return str(path), made


def test_with_keys_only_who_may_watches_and_sees_numbers(start, keys):
    path, made = keys
    with start("--api-keys-file", path, "--max-num-seqs", "4") as server:
        assert [events_of(server, key, 1) for key in (None, "wrong", made["tenant"])] == [401, 401, 403]
        assert server.http.get("/").status_code == server.http.get("/view/app.js").status_code == 200
        body = {"model": "tiny", "prompt": "secret words", "max_tokens": 3000, "ignore_eos": True, "stream": True}
        headers = {"authorization": f"Bearer {made['tenant']}"}
        with server.http.stream("POST", "/v1/completions", json=body | {"user": "ann"}, headers=headers) as reply:
            lines = reply.iter_lines()
            next(lines)
            engine, *updates = events_of(server, made["admin"], 4)
            assert [each.name for each in updates] == ["update"] * 3
            assert engine.data["state"] == "ready"
            (request,) = updates[-1].data["requests"]
            assert request["name"] == reply.headers["x-engine-request"]
            assert request["prompt"] == 12
            text = str([each.data for each in (engine, *updates)])
            for secret in ("secret", "ann", "tenant", made["tenant"], hash_key(made["tenant"])):
                assert secret not in text
        # Who watches holds up nobody's end.
        with server.http.stream("GET", "/view/events", headers={"authorization": f"Bearer {made['admin']}"}) as reply:
            lines = reply.iter_lines()
            next(lines)
            code, log = server.end()
        assert code == 0
        assert not [entry for entry in log if entry["level"] == "error"]


@pytest.mark.parametrize("live_view", [True, False])
def test_it_can_be_left_out(live_view):
    app = make_app(Lineup("tiny", [Version("", FakeClient)]), ServerSettings(live_view=live_view), Access())
    paths = {route.path for route in app.routes}
    assert ({"/", "/view/events"} <= paths) is live_view
    assert {"/docs", "/view/docs.js"} <= paths
