"""What happens when clients leave, engines die, queues fill and signals come."""

import os
import signal
import threading
import time

import httpx
import openai
import psutil
import pytest

from miniserve.runtime.member_handle import program
from miniserve.server.access import hash_key, new_key

LONG = {"model": "tiny", "prompt": "hello", "max_tokens": 8000, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(start):
    with start("--max-num-seqs", "4", "--max-waiting", "2") as server:
        yield server


def streaming(server, **options):
    return server.http.stream("POST", "/v1/completions", json=LONG | {"stream": True} | options)


@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_leaves_frees_what_it_had(server, n):
    aborted = server.metric("request_success_total")
    with streaming(server, n=n) as reply:
        lines = reply.iter_lines()  # kept: when it goes, so does the connection
        next(lines)
        assert server.metric("num_requests_running") == n
        assert server.metric("kv_cache_usage_perc") > 0
    server.until(lambda: server.metric("num_requests_running") == 0, timeout_s=5)
    assert server.metric("kv_cache_usage_perc") == 0
    assert server.metric("request_success_total") == aborted + n
    with pytest.raises(httpx.ReadTimeout):  # not a stream: it leaves before it has heard anything
        server.http.post("/v1/completions", json=LONG | {"n": n}, timeout=0.2)
    server.until(lambda: server.metric("num_requests_running") == 0, timeout_s=5)
    assert server.metric("generation_tokens_total") < 8000 * n


def test_a_full_queue_is_429(server):
    with streaming(server, n=4) as reply, streaming(server, n=2):
        lines = reply.iter_lines()  # kept: when it goes, so does the connection
        next(lines)
        with pytest.raises(openai.RateLimitError) as caught:
            server.openai().completions.create(**{"model": "tiny", "prompt": "hello"})
        assert int(caught.value.response.headers["retry-after"]) >= 1
    server.until(lambda: server.metric("num_requests_running") == 0)
    server.openai().completions.create(model="tiny", prompt="hello")


def test_a_killed_engine_is_replaced(server):
    waiting = []

    def ask():
        waiting.append(server.http.post("/v1/completions", json=LONG))

    thread = threading.Thread(target=ask)
    with streaming(server) as reply:
        lines = reply.iter_lines()
        next(lines)
        thread.start()
        server.until(lambda: server.metric("num_requests_running") == 2)
        os.kill(server.engine_pid(), signal.SIGKILL)
        assert any('"error"' in line and "the engine died" in line for line in lines)
    thread.join(timeout=10)
    assert waiting[0].status_code == 500
    assert server.http.get("/ready").status_code == 503
    with pytest.raises(openai.InternalServerError):
        server.openai().completions.create(model="tiny", prompt="hello")
    server.until(lambda: server.http.get("/ready").status_code == 200, timeout_s=60)
    assert server.openai().completions.create(model="tiny", prompt="hello").choices[0].text
    assert server.metric("engine_restarts_total") == 1
    assert server.metric("kv_cache_usage_perc") == 0


def test_a_killed_rank_of_experts_ends_its_engine_which_is_replaced(start, tiny_directory):
    """Attention and feed-forward parts apart: whoever waits is told, the log says which rank, and all ranks are new."""

    def ranks():
        children = psutil.Process(server.process.pid).children(recursive=True)
        return {child.pid for child in children if program("miniserve.fleet.afd.member") in child.cmdline()}

    def answer():
        return server.openai().completions.create(model="tiny", prompt=[5, 6, 7], max_tokens=8, temperature=0)

    with start("--afd", "1x2", "--max-model-len", "64", model=str(tiny_directory("qwen3_moe")[0])) as server:
        before, first = ranks(), answer().choices[0].text
        assert len(before) == 2
        with streaming(server, prompt=[5, 6, 7], max_tokens=60) as reply:
            lines = reply.iter_lines()
            next(lines)
            killed = max(before)
            os.kill(killed, signal.SIGKILL)
            killed_s = time.monotonic()
            assert any('"error"' in line and "the engine died" in line for line in lines)
            assert time.monotonic() - killed_s < 10
        server.until(lambda: server.http.get("/ready").status_code == 200, timeout_s=60)
        assert answer().choices[0].text == first
        assert len(ranks()) == 2
        assert not ranks() & before
        code, log = server.end()
    assert code == 0
    (failure,) = [entry for entry in log if entry["message"] == "the engine failed"]
    assert f"(process {killed}) was ended by SIGKILL" in failure["reason"]
    assert not [entry for entry in log if "traceback" in entry]


def test_sigterm_lets_requests_finish_and_takes_no_more(start, tmp_path):
    """With keys, tenants and the log: the server's whole life."""
    key, other = new_key(), new_key()
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[other]\nsha256 = "{hash_key(other)}"\nrequests_per_minute = 1\n')
    with start("--api-keys-file", str(keys), MINISERVE_API_KEY=key) as server:
        headers = {"authorization": f"Bearer {key}"}
        system = {"model": "tiny", "prompt": "a" * 40, "max_tokens": 1}
        cached = [
            server.openai(each).completions.create(**system).usage.prompt_tokens_details.cached_tokens
            for each in (key, key, other)
        ]
        assert cached == [0, 32, 0]  # of blocks of 16; nothing of another tenant's
        with pytest.raises(openai.RateLimitError):
            server.openai(other).completions.create(**system)
        for wrong in ({}, {"authorization": "Bearer x"}):
            assert server.http.post("/v1/completions", json=LONG, headers=wrong).status_code == 401
        secret = LONG | {"prompt": "secret words", "user": "ann", "max_tokens": 400}
        with server.http.stream("POST", "/v1/completions", json=secret | {"stream": True}, headers=headers) as reply:
            lines = reply.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            server.until(lambda: server.http.get("/ready").status_code == 503)
            refused = server.http.post("/v1/completions", json=LONG, headers=headers)
            assert refused.status_code == 503
            rest = list(lines)
        assert '"finish_reason":"length"' in rest[-4]
        assert rest[-2] == "data: [DONE]"
        code, log = server.end(signal.SIGCONT)
    assert code == 0
    entries = [entry for entry in log if entry["message"] == "request"]
    assert [entry["status"] for entry in entries if entry["path"] == "/v1/completions"] == [
        200,
        200,
        200,
        429,
        401,
        401,
        503,
        200,
    ]
    assert entries[-1]["user"] == "ann"
    assert "secret words" not in str(log)
    assert key not in str(log)


def test_an_engine_that_hangs_is_replaced(start):
    """A stopped process is one: its pipe stays open, and nothing comes."""
    with start("--silence-seconds", "5") as server, streaming(server) as reply:
        lines = reply.iter_lines()
        next(lines)
        os.kill(server.engine_pid(), signal.SIGSTOP)
        assert server.http.get("/health").status_code == 200
        assert any('"error"' in line and "the engine died" in line for line in lines)
        server.until(lambda: server.http.get("/ready").status_code == 200, timeout_s=60)
        assert server.openai().completions.create(model="tiny", prompt="hello").choices[0].text
        code, log = server.end()
    assert code == 0
    assert {entry["silent_s"] for entry in log if entry["message"] == "the engine hangs"} == {5.0}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_engine_ends_with_the_server(start, number):
    with start("--drain-seconds", "0.2") as server:
        engine = psutil.Process(server.engine_pid())
        with streaming(server) as reply:
            lines = reply.iter_lines()
            next(lines)
            server.process.send_signal(number)
            if number == signal.SIGTERM:  # what takes longer than the drain is told so
                assert any('"error"' in line and "shutting down" in line for line in lines)
        assert server.process.wait(timeout=20) == (0 if number == signal.SIGTERM else -number)
        assert psutil.wait_procs([engine], timeout=20)[1] == []
