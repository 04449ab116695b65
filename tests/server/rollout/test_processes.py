"""Versions of a real model behind a real server: 64 streams while one takes the other's place and is taken back.

Some 30 s of CPU.
"""

import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import httpx
import pytest

from miniserve.registry.audit import AuditLog
from miniserve.registry.keys import PrivateKey, make_keys
from miniserve.registry.signing import sign
from miniserve.registry.store import Registry
from miniserve.registry.version import Provenance
from miniserve.server.access import hash_key, new_key
from support import tiny_models

STREAMS = 64
ASKED = {"prompt": "hello", "max_tokens": 48, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """Version 1; version 2, with other weights; "broken", whose weights are noise; "unsigned", as the others are not."""
    root = tmp_path_factory.mktemp("registry")
    make_keys(root / "key", root / "key.pub")
    for seed, version in enumerate(("1", "2", "broken", "unsigned")):
        directory, model = tmp_path_factory.mktemp("version"), tiny_models.make("llama", seed)
        if version == "broken":
            model.lm_head.weight.data *= 100
        model.save_pretrained(directory)
        tiny_models.save_tokenizer(directory)
        made = Registry(root).register(
            "shop", directory, card="Of a test.", version=version,
            provenance=Provenance(source="random weights", by="a test", licence="Apache-2.0"),
        )  # fmt: skip
        if version != "unsigned":
            sign(made.path, PrivateKey.read(root / "key"))
    return root


class Shop:
    """A server of versions, and somebody who may direct them."""

    def __init__(self, server, key, keys, log):
        self.server, self.keys, self.log = server, keys, log
        self.admin = httpx.Client(
            base_url=f"{server.url}/admin", headers={"authorization": f"Bearer {key}"}, timeout=60
        )

    def order(self, method, path, **body):
        return self.admin.request(method, path, json=body or None)

    def states(self):
        return {each["version"]: each["state"] for each in self.order("GET", "/versions").json()["versions"]}

    def answer(self, model="tiny", **headers):
        """One whole greedy answer: the version that gave it, and its text."""
        reply = self.server.http.post("/v1/completions", json=ASKED | {"model": model}, headers=headers)
        assert reply.status_code == 200, reply.text
        return reply.headers["x-model-version"], reply.json()["choices"][0]["text"]


@pytest.fixture(scope="module")
def shop(start, registry, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("shop")
    key, keys = new_key(), tmp_path / "admins.toml"
    keys.write_text(f'[ann]\nsha256 = "{hash_key(key)}"\n')
    smoke = tmp_path / "smoke.toml"
    smoke.write_text('[[texts]]\ntext = "some words of no meaning"\nmax_nats = 9.0\n')
    options = [
        "--models",
        "registry:shop",
        "--kv-cache-mib",
        "32",
        "--max-num-seqs",
        str(STREAMS),
        "--max-model-len",
        "96",
    ]
    options += ["--require-signed", str(registry / "key.pub")]
    options += ["--smoke", str(smoke), "--admin-keys-file", str(keys)]
    (registry / "shop" / "stable").write_text("1\n")
    with start(*options, model=None, MINISERVE_REGISTRY=str(registry)) as server:
        yield Shop(server, key, keys, Registry(registry).audit.path)


@pytest.fixture(autouse=True)
def as_at_first(shop):
    """Version 1 is stable, and nothing else is loaded."""
    yield
    shop.order("PUT", "/traffic", shadow=None)
    if shop.states()["2"] == "ready":
        assert shop.order("POST", "/versions/2/unload").status_code == 200
    assert {shop.states()[name] for name in ("broken", "unsigned")} <= {"cold", "failed"}
    assert (shop.states()["1"], shop.states()["2"]) == ("ready", "cold")


class Answer(NamedTuple):
    """What a stream gave, and the phase in which it began."""

    phase: str
    status: int
    version: str
    text: str
    reason: str
    done: bool


class Streams:
    """So many at once, one after the other each, until told to end."""

    def __init__(self, url):
        self._url, self._ended, self.phase, self.begun = url, threading.Event(), "", []
        self._pool = ThreadPoolExecutor(STREAMS)
        self._work = []

    def begin(self, phase):
        self.phase = phase
        self._work = [self._pool.submit(self._one_after_another) for _ in range(STREAMS)]

    def end(self):
        self._ended.set()
        with self._pool:
            return [answer for work in self._work for answer in work.result()]

    def _one_after_another(self):
        with httpx.Client(base_url=self._url, timeout=120) as http:
            answers = []
            while not self._ended.is_set():
                answers.append(self._one(http, self.phase))
            return answers

    def _one(self, http, phase):
        self.begun.append(phase)
        text, reason, done = "", None, False
        with http.stream("POST", "/v1/completions", json=ASKED | {"model": "tiny", "stream": True}) as reply:
            for data in filter(None, (line.removeprefix("data: ") for line in reply.iter_lines())):
                if data == "[DONE]":
                    done = True
                else:
                    (choice,) = json.loads(data)["choices"]
                    text, reason = text + choice["text"], choice["finish_reason"] or reason
            return Answer(phase, reply.status_code, reply.headers.get("x-model-version"), text, reason, done)


def test_a_rollback_under_64_streams_fails_none_of_them(shop):
    right = {"1": shop.answer()[1]}
    assert shop.order("POST", "/versions/2/load").status_code == 200
    version, right["2"] = shop.answer("tiny@2")
    assert version == "2"
    assert right["1"] != right["2"]
    streams = Streams(shop.server.url)
    streams.begin("before")
    for method, path, body, phase in (
        ("GET", "/versions", {}, "before"),
        ("PUT", "/traffic", {"canary": "2", "weight": 0.25}, "canary"),
        ("POST", "/promote", {"version": "2"}, "promoted"),
        ("POST", "/rollback", {}, "rolled back"),
        ("POST", "/versions/2/unload", {}, "unloaded"),
    ):
        assert shop.order(method, path, **body).status_code == 200
        streams.phase = phase  # it lasts until as many have begun in it as there are
        shop.server.until(lambda phase=phase: streams.begun.count(phase) >= STREAMS, timeout_s=120)
    answers = streams.end()
    assert len(answers) >= 5 * STREAMS
    assert {(each.status, each.reason, each.done) for each in answers} == {(200, "length", True)}
    assert all(each.text == right[each.version] for each in answers)
    by_phase = {phase: {each.version for each in answers if each.phase == phase} for phase in streams.begun}
    assert by_phase["canary"] == {"1", "2"}
    assert "2" in by_phase["promoted"]
    assert by_phase["unloaded"] == {"1"}
    assert shop.states()["2"] == "cold"
    records = AuditLog(shop.log)
    records.verify()
    done = [(each.who, each.what) for each in records.read()[-10:] if each.what.endswith(": done")]
    assert done == [("ann", f"rollout.{what}: done") for what in ("load", "traffic", "promote", "rollback", "unload")]


def test_a_version_that_does_not_pass_answers_nobody(shop):
    refused = shop.order("POST", "/versions/broken/load")
    assert refused.status_code == 409
    assert "nats a token: at most 9" in refused.json()["error"]["message"]
    assert shop.states() == {"1": "ready", "2": "cold", "broken": "failed", "unsigned": "cold"}
    refused = shop.order("POST", "/versions/unsigned/load")
    assert refused.status_code == 409
    assert "not signed" in refused.json()["error"]["message"]
    assert shop.order("POST", "/promote", version="broken").status_code == 503
    assert shop.answer()[0] == "1"
    (_, record) = [each for each in AuditLog(shop.log).read() if each.what == "rollout.load: refused"]
    assert record.details["reason"] == refused.json()["error"]["message"]


def test_orders_need_a_key_of_their_own_and_sense(shop):
    for headers in ({}, {"authorization": f"Bearer {new_key()}"}):
        assert httpx.post(f"{shop.server.url}/admin/rollback", headers=headers).status_code == 401
    for method, path, body, status in (
        ("POST", "/rollback", {}, 400),
        ("POST", "/promote", {"version": "7"}, 404),
        ("PUT", "/traffic", {"canary": "1", "weight": 0.5}, 400),
        ("PUT", "/traffic", {"canary": "2", "weight": 7}, 400),
        ("PUT", "/traffic", {"canary": "2", "wait": 1}, 400),
        ("POST", "/versions/1/unload", {}, 409),
        ("POST", "/versions/1/load", {}, 409),
        ("GET", "/nothing", {}, 404),
    ):
        assert shop.order(method, path, **body).status_code == status, path
    whole = shop.log.read_text()
    shop.log.write_text("no log\n")  # what cannot be written down is not done
    refused = shop.order("POST", "/versions/2/load")
    assert refused.status_code == 500
    assert "it is not an audit record" in refused.json()["error"]["message"]
    assert shop.states()["2"] == "cold"
    shop.log.write_text(whole)


def test_admins_keys_are_read_again(shop):
    """When the file has changed, and on SIGHUP; what is broken leaves in force what was."""
    before, bobs = shop.keys.read_text(), new_key()

    def status(key):
        headers = {"authorization": f"Bearer {key}"}
        return httpx.get(f"{shop.server.url}/admin/versions", headers=headers).status_code

    def told(says, times):
        lines = [json.loads(line) for line in shop.server._written() if line.startswith("{")]
        return [each["message"] for each in lines if each.get("what") == "admin keys"].count(says) >= times

    assert status(bobs) == 401
    shop.keys.write_text(f'{before}[bob]\nsha256 = "{hash_key(bobs)}"\n')  # no signal is needed
    shop.server.until(lambda: status(bobs) == 200)
    shop.server.process.send_signal(signal.SIGHUP)
    shop.server.until(lambda: told("read again", 2))
    shop.keys.write_text("[bob")
    shop.server.until(lambda: told("not read again: what was in force stays", 1))
    assert (status(bobs), shop.order("GET", "/versions").status_code) == (200, 200)
    shop.keys.write_text(before)
    shop.server.until(lambda: status(bobs) == 401)
    assert shop.order("GET", "/versions").status_code == 200


def test_each_version_s_requests_are_counted_apart_and_admins_see_what_everybody_used(shop):
    assert shop.order("POST", "/versions/2/load").status_code == 200
    names = [f'served_requests_total{{model_name="tiny",status="2xx",tenant="everybody",version="{v}"}}' for v in "12"]

    def counts():
        text = shop.server.http.get("/metrics").text
        found = dict(line.removeprefix("miniserve:").rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
        assert found['traffic_share{model_name="tiny",role="stable",version="1"}'] == "1.0"
        return [float(found.get(name, 0)) for name in names]

    before = counts()
    used = shop.order("GET", "/usage").json()["tenants"].get("everybody", {"output_tokens": 0})
    for version in "122":
        assert shop.answer(**{"x-model-version": version})[0] == version
    assert [after - earlier for after, earlier in zip(counts(), before, strict=True)] == [1, 2]
    now = shop.order("GET", "/usage").json()["tenants"]
    assert list(now) == ["everybody"]
    assert now["everybody"]["output_tokens"] - used["output_tokens"] == 3 * ASKED["max_tokens"]
    assert shop.server.http.get("/admin/usage").status_code == 401


def test_a_shadow_computes_copies_that_nobody_sees(shop):
    assert shop.order("POST", "/versions/2/load").status_code == 200
    assert shop.order("PUT", "/traffic", shadow="2").status_code == 200
    assert {shop.answer()[0] for _ in range(4)} == {"1"}

    def copies():
        (shown,) = [each for each in shop.order("GET", "/versions").json()["versions"] if each["version"] == "2"]
        return shown["copies"]

    shop.server.until(lambda: copies()["copies"] == 4)
    assert copies()["different"] == 4
    assert shop.answer(**{"x-model-version": "2"})[0] == "2"


def test_a_tenants_kv_is_deleted_by_order(shop):
    asked = ASKED | {"model": "tiny", "prompt": "words to remember " * 3, "max_tokens": 2}

    def cached():
        usage = shop.server.http.post("/v1/completions", json=asked).json()["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    assert cached() == 0
    assert cached() >= 16
    done = shop.order("DELETE", "/tenants/everybody/kv")
    assert done.status_code == 200, done.text
    assert done.json()["tenant"] == "everybody"
    assert done.json()["deleted_blocks"]["device"] >= 1
    assert cached() == 0
    assert shop.order("DELETE", "/tenants/eve/kv").status_code == 404
    assert shop.server.http.delete("/admin/tenants/everybody/kv").status_code == 401
    ordered = [each for each in AuditLog(shop.log).read() if each.what.startswith("rollout.delete_kv")]
    assert [(each.what, each.details["tenant"]) for each in ordered] == [
        ("rollout.delete_kv", "everybody"),
        ("rollout.delete_kv: done", "everybody"),
        ("rollout.delete_kv", "eve"),
        ("rollout.delete_kv: refused", "eve"),
    ]
