"""A real server's counts: by whom, how well, at what price; and who may see them. One process, some 4 s."""

import hashlib
import re
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

ALICE, BOB = "alice-has-this-long-key", "bob-has-another-long-key"
KEYS = "".join(
    f'[{name}]\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n{more}\n'
    for name, key, more in (("alice", ALICE, "watch = true"), ("bob", BOB, "requests_per_minute = 3"))
)
ASKED = {"model": "tiny", "prompt": "hello world", "max_tokens": 4, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(start, tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys.toml"
    keys.write_text(KEYS)
    options = (
        "--api-keys-file",
        str(keys),
        "--slo",
        "ttft:60000,itl:60000",
        "--price-per-hour",
        "3.6",
        "--kv-host-mib",
        "8",
    )
    with start("--max-model-len", "512", *options) as server:
        yield server


def bearer(key):
    return {"authorization": f"Bearer {key}"}


def series(server, name, key=ALICE):
    text = server.http.get("/metrics", headers=bearer(key) if key else {}).text
    return {
        tuple(sample.labels[label] for label in ("tenant", "status") if label in sample.labels): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"miniserve:{name}"
    }


def test_requests_are_counted_once_by_tenant_and_by_what_became_of_them(server):
    def ask(key, **more):
        return server.http.post("/v1/completions", json=ASKED | more, headers=bearer(key)).status_code

    assert [ask(ALICE), ask(ALICE, n=2), ask(ALICE, temperature=-1), ask("an-unknown-key-that-is-long")] == [
        200, 200, 400, 401,
    ]  # fmt: skip
    assert [ask(BOB, stream=True) for _ in range(4)] == [200, 200, 200, 429]
    with httpx.stream(
        "POST", f"{server.url}/v1/completions", json=ASKED | {"stream": True, "max_tokens": 400}, headers=bearer(ALICE)
    ) as reply:
        next(reply.iter_lines())
    server.until(lambda: series(server, "served_requests_total")["alice", "499"])
    assert {labels: number for labels, number in series(server, "served_requests_total").items() if number} == {
        ("alice", "2xx"): 2, ("alice", "4xx"): 1, ("alice", "499"): 1, ("", "4xx"): 1, ("bob", "2xx"): 3, ("bob", "429"): 1,
    }  # fmt: skip
    assert series(server, "served_prompt_tokens_total")["bob",] == 3 * 11
    assert series(server, "served_output_tokens_total")["bob",] == 3 * 4
    assert series(server, "served_request_seconds_count") == {("alice",): 4, ("",): 1, ("bob",): 4}
    assert series(server, "slo_requests_total") == series(server, "slo_good_total") == {
        ("alice",): 3, ("",): 0, ("bob",): 3,
    }  # fmt: skip
    spent, busy = series(server, "served_engine_seconds_total"), series(server, "engine_busy_seconds_total")
    assert 0 < sum(spent.values()) <= sum(busy.values()) * (1 + 1e-9)
    assert sum(spent.values()) > 0.5 * sum(busy.values()), "but for the stream that was left, it is all there"


def test_what_rules_and_dashboard_ask_for_is_in_the_text_of_a_real_server(server):
    deploy = Path(__file__).parents[3] / "deploy"
    files = [deploy / "prometheus" / "miniserve.rules.yml", deploy / "grafana" / "miniserve.json"]
    asked = {name for path in files for name in re.findall(r"\bminiserve:(\w+)", path.read_text())} - {"objective"}
    mixtures_and_fleets = {name for name in asked if name.startswith(("kv_moves_", "expert_"))}
    assert len(mixtures_and_fleets) < 4
    assert len(asked) > 20
    text = server.http.get("/metrics", headers=bearer(ALICE)).text
    assert asked - mixtures_and_fleets <= set(re.findall(r"^miniserve:(\w+)", text, re.MULTILINE))


def test_who_has_no_key_that_may_watch_sees_no_tenants(server):
    assert {labels for labels in series(server, "served_output_tokens_total", None)} == {()}
    by_tenant, together = (series(server, "served_requests_total", key) for key in (ALICE, None))
    assert together["2xx",] == by_tenant["alice", "2xx"] + by_tenant["bob", "2xx"]
    assert "alice" not in server.http.get("/metrics", headers=bearer(BOB)).text
    assert server.http.get("/metrics", headers=bearer("an-unknown-key-that-is-long")).status_code == 401


def test_each_tenant_sees_what_it_has_used_and_nobody_else_s(server):
    assert server.http.get("/usage").status_code == 401
    bob = server.http.get("/usage", headers=bearer(ALICE)).json()
    assert list(bob["tenants"]) == ["alice"]
    alice = bob["tenants"]["alice"]
    assert alice["engine_seconds"] == series(server, "served_engine_seconds_total")["alice",]
    assert 0 < alice["cost"] < bob["seconds"] / 3600 * bob["price_per_hour"]
    assert server.http.get("/admin/usage", headers=bearer(ALICE)).status_code == 404, "there are no admins here"
