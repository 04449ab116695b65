"""Prefill and decode in processes of their own, over HTTP: the same answers as one engine's, whoever is killed."""

import contextlib
import json
import os
import signal
import threading
from pathlib import Path

import httpx
import psutil
import pytest

from miniserve import LLM, SamplingParams

LONG = "a long prompt that is worth a move; " * 4
SAMPLED = {"temperature": 1.0, "seed": 3, "n": 3, "repetition_penalty": 1.3}


@pytest.fixture(scope="module")
def fleet(start):
    with start(
        "--prefill", "1", "--decode", "1", "--prefill-from", "32", "--kv-cache-mib", "16", "--kv-host-mib", "8"
    ) as server:
        yield server


@pytest.fixture(scope="module")
def asked(start):
    """What one engine answers."""
    bodies = [
        {"prompt": LONG, "max_tokens": 300},
        {"prompt": LONG, "max_tokens": 30} | SAMPLED,
        {"prompt": [LONG[3:], "short", LONG[5:]], "max_tokens": 12, "logprobs": 2},
        {"prompt": LONG[7:], "max_tokens": 60, "stop": ["e", "q", "7"]},
        {"prompt": LONG[9:], "max_tokens": 5, "echo": True, "logprobs": 1},
        {"prompt": LONG[11:], "max_tokens": 1},
    ]
    with start("--kv-cache-mib", "16") as server:
        return [(body, post(server, body)) for body in bodies]


def post(server, body):
    body = {"model": "tiny", "temperature": 0, "ignore_eos": True} | body
    return server.http.post("/v1/completions", json=body).raise_for_status().json()


def assert_same(reply, answer):
    """Log-probabilities may differ in their last digits, with what is computed beside them."""
    choices = [choice | {"logprobs": None} for choice in reply["choices"]]
    assert choices == [choice | {"logprobs": None} for choice in answer["choices"]]
    assert reply["usage"] == answer["usage"]
    for choice, other in zip(reply["choices"], answer["choices"], strict=True):
        if choice["logprobs"]:
            mine, theirs = (each["logprobs"]["token_logprobs"] for each in (choice, other))
            # The first of a prompt has none.
            assert [value or 0.0 for value in mine] == pytest.approx([value or 0.0 for value in theirs], abs=1e-4)


def pids(server):
    """Of the engines, those for prefill first: in the order of their start."""
    children = psutil.Process(server.process.pid).children()
    engines = [child for child in children if "spawn_main" in str(child.cmdline())]
    return [child.pid for child in sorted(engines, key=lambda child: child.create_time())]


def is_at_baseline(server):
    return all(server.metric(name) == 0 for name in ("num_requests_running", "kv_cache_usage_perc", "kv_moves_held"))


def test_the_same_answers_as_one_engines(fleet, asked):
    for body, answer in asked:
        assert_same(post(fleet, body), answer)
    assert fleet.metric("kv_moves_left_total") == fleet.metric("kv_moves_arrived_total") == 4
    assert fleet.metric("kv_moves_failed_total") == 0
    fleet.until(lambda: is_at_baseline(fleet))


def test_a_grammar_goes_on_where_it_was(fleet):
    schema = {"enum": ["abababababababab", "cdcdcdcdcdcdcdcd"]}
    form = {"type": "json_schema", "json_schema": {"name": "one", "schema": schema}}
    body = {"prompt": LONG[13:], "max_tokens": 40, "response_format": form, "ignore_eos": False}
    moved = fleet.metric("kv_moves_arrived_total")
    assert json.loads(post(fleet, body)["choices"][0]["text"]) in schema["enum"]
    assert fleet.metric("kv_moves_arrived_total") == moved + 1


def test_who_leaves_frees_both_sides(fleet):
    body = {"model": "tiny", "prompt": LONG[15:], "max_tokens": 8000, "ignore_eos": True, "stream": True}
    with fleet.http.stream("POST", "/v1/completions", json=body) as reply:
        lines = reply.iter_lines()
        next(lines)
    for timeout_s in (0.01, 0.03, 0.05):  # in the middle of the prompt, of the move, of the decode
        with contextlib.suppress(httpx.TimeoutException):
            fleet.http.post(
                "/v1/completions", json=body | {"prompt": LONG[17:] * 9, "stream": False}, timeout=timeout_s
            )
    fleet.until(lambda: is_at_baseline(fleet))


@pytest.mark.parametrize("which", [0, 1])
def test_a_killed_engine_costs_no_token(fleet, asked, which):
    """Prefill, then decode, in the middle of what both do; it is there again later."""
    body, answer = asked[0]
    sampled, drawn = asked[1]
    replies, restarts = [], fleet.metric("engine_restarts_total")
    stream = {"model": "tiny", "temperature": 0, "ignore_eos": True, "stream": True} | body
    threads = [threading.Thread(target=lambda: replies.append(post(fleet, sampled))) for _ in range(2)]
    with fleet.http.stream("POST", "/v1/completions", json=stream) as reply:
        lines = reply.iter_lines()
        texts = [next(lines) for _ in range(20)]
        for thread in threads:
            thread.start()
        os.kill(pids(fleet)[which], signal.SIGKILL)
        texts += lines
    chunks = [json.loads(line.removeprefix("data: ")) for line in texts if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == answer["choices"][0]["text"]
    for thread in threads:
        thread.join(60)
    assert [reply["choices"] for reply in replies] == [drawn["choices"]] * 2
    assert fleet.http.get("/ready").status_code == 200
    fleet.until(lambda: fleet.metric("engine_up") == 2, timeout_s=60)
    assert fleet.metric("engine_restarts_total") == restarts + 1
    assert post(fleet, body)["choices"] == answer["choices"]
    fleet.until(lambda: is_at_baseline(fleet))


TALES = [
    f"{name} lived in a house by the sea, and every morning the first thing to be seen from its window was"
    for name in ("Once upon a time an old sailor", "The keeper of the lighthouse", "My grandmother, who was a teacher,")
]
ESSAY = " ".join(f"In the year {year} the machine computed {year * 7} numbers." for year in range(1941, 1950))


def test_a_real_model_goes_on_whoever_is_killed(start, smollm2_gguf):
    """Each engine once, with streams that decode and a prompt that is being computed: the tokens are one engine's."""
    plain = {"dtype": "float32", "device": "cpu", "backend": "torch", "kv_cache_memory": 2**27, "max_model_len": 1024}
    with LLM("smollm2", **plain) as llm:
        made = llm.generate([*TALES, ESSAY], SamplingParams(max_tokens=24, ignore_eos=True))
        expected = [each.text for each in made]
    options = [
        "--prefill",
        "1",
        "--decode",
        "1",
        "--prefill-from",
        "16",
        "--kv-cache-mib",
        "128",
        "--max-model-len",
        "1024",
    ]
    with start(*options, model="smollm2") as server:
        for engine in pids(server):
            server.until(lambda: server.metric("engine_up") == 2, timeout_s=120)
            said = {}

            def ask(prompt, texts):
                body = {"model": "tiny", "prompt": prompt, "max_tokens": 24, "temperature": 0, "ignore_eos": True}
                with server.http.stream("POST", "/v1/completions", json=body | {"stream": True}) as reply:
                    for line in reply.iter_lines():
                        if line.startswith("data: {"):
                            texts.append(json.loads(line.removeprefix("data: "))["choices"][0]["text"])

            threads = [
                threading.Thread(target=ask, args=(prompt, said.setdefault(prompt, []))) for prompt in (*TALES, ESSAY)
            ]
            for thread in threads[:-1]:
                thread.start()
            server.until(lambda said=said: all(len(said[prompt]) >= 4 for prompt in TALES), timeout_s=120)
            threads[-1].start()
            server.until(lambda: server.metric("num_requests_running") >= 4, timeout_s=120)
            os.kill(engine, signal.SIGKILL)
            for thread in threads:
                thread.join(120)
            assert ["".join(said[prompt]) for prompt in (*TALES, ESSAY)] == expected


def test_nothing_outlives_the_server(fleet):
    """The last one: it kills the server, which is also the router."""
    engines = [psutil.Process(pid) for pid in pids(fleet)]
    before = set(Path("/dev/shm").iterdir())
    body = {"model": "tiny", "prompt": LONG[19:], "max_tokens": 8000, "ignore_eos": True, "stream": True}
    with fleet.http.stream("POST", "/v1/completions", json=body) as reply:
        lines = reply.iter_lines()
        next(lines)
        fleet.process.kill()
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
    assert psutil.wait_procs(engines, timeout=20)[1] == []
    assert set(Path("/dev/shm").iterdir()) <= before


def test_engines_come_and_go_with_the_load(start):
    """Processes, with a request under way at any time: nothing is lost."""
    options = ["--decode", "1-2", "--kv-cache-mib", "16", "--capacity", "1000:2:1", "--plan-seconds", "0.3"]
    with start(*options) as server:
        body = {"prompt": "a few words", "max_tokens": 40}
        answer, replies, done = post(server, body), [], threading.Event()

        def ask():
            while not done.is_set():
                replies.append(post(server, body))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        server.until(lambda: server.metric("engine_up") == 2, 60)
        done.set()
        for thread in threads:
            thread.join()
        done.clear()
        one = threading.Thread(target=ask)
        one.start()
        server.until(lambda: server.metric("engine_up") == 1, 60)
        done.set()
        one.join()
        assert {reply["choices"][0]["text"] for reply in replies} == {answer["choices"][0]["text"]}
        assert server.end()[0] == 0
