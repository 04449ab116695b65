"""Real deployments on this machine: Dynamo's frontend, workers of ours with SmolLM2, the `openai` client.

Where Dynamo is not installed (`pip install "miniserve[dynamo]"`) all of it is skipped.
"""

import itertools
import os
import random
import signal
import socket
import statistics
import threading
import time

import openai
import pytest

pytest.importorskip("dynamo.common", reason="NVIDIA Dynamo is not installed")

from miniserve import LLM, SamplingParams
from miniserve.dynamo.local import Local

OPTIONS = ["--kv-cache-mib", "200", "--threads", "1"]
PROMPTS = ["The capital of France is", "1, 2, 3,", "The quick brown fox jumps over the lazy dog. " * 30]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Deployment:
    """Some workers behind a frontend, and a client.

    In turns, unless a test is about the router: with "kv" the frontend of 1.4.2 does not find another worker for a
    request whose own has died ("failed to book scheduler state: Request … already exists").
    """

    def __init__(self, directory, workers, router="round-robin"):
        self.local = Local(directory, "smollm2", OPTIONS)
        port = free_port()
        self.local.start_frontend(port, router)
        self.names = [self.local.start_worker(mode) for mode in workers]
        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120)

    def __enter__(self):
        self.wait(self.names)
        return self

    def __exit__(self, *_):
        self.local.end()

    def wait(self, names, seconds=240):
        """Until each of those has said that it serves, and the frontend answers."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert not self.local.dead(), "a process has ended by itself"
            if all(b"Serving smollm2" in self.local.log(name).read_bytes() for name in names) and self.answers():
                return
            time.sleep(0.5)
        pytest.fail("\n".join(self.local.log(name).read_text()[-2000:] for name in self.local.processes))

    def answers(self):
        try:
            return bool(self.complete("x", 2))
        except openai.OpenAIError:
            return False

    def complete(self, prompt, tokens, **asked):
        return self.client.completions.create(
            model="smollm2", prompt=prompt, max_tokens=tokens, temperature=0, extra_body={"ignore_eos": True}, **asked
        )

    def stream(self, prompt, tokens):
        """The text, when its first part came, and the longest wait for a part after that."""
        began, text, moments = time.monotonic(), "", []
        for part in self.complete(prompt, tokens, stream=True):
            moments.append(time.monotonic() - began)
            text += part.choices[0].text if part.choices else ""
        gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
        return text, moments[0], max(gaps)

    def streams(self, prompt, tokens, number, meanwhile):
        """Several at once; `meanwhile` is called when they have begun."""
        found = []
        threads = [threading.Thread(target=lambda: found.append(self.stream(prompt, tokens))) for _ in range(number)]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        meanwhile()
        for thread in threads:
            thread.join()
        return found

    def kill(self, name):
        """The worker's process, which its engine's does not outlive."""
        os.kill(self.local.processes.pop(name).pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def expected(smollm2_gguf):
    """`expected(prompt, tokens)`: what the engine says without Dynamo."""
    with LLM("smollm2", kv_cache_memory=200 * 2**20) as llm:
        yield lambda prompt, tokens: llm.generate([prompt], SamplingParams(max_tokens=tokens, ignore_eos=True))[0].text


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with Deployment(tmp_path_factory.mktemp("whole"), ["agg", "agg"]) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    with Deployment(tmp_path_factory.mktemp("apart"), ["prefill", "prefill", "decode", "decode"]) as deployment:
        yield deployment


@pytest.mark.parametrize("prompt", PROMPTS)
def test_whole_and_apart_say_what_the_engine_says(whole, apart, expected, prompt):
    for deployment in (whole, apart):
        for _ in range(2):  # the second time from caches
            assert deployment.complete(prompt, 24).choices[0].text == expected(prompt, 24)


def test_what_was_computed_before_is_found_where_it_is(whole):
    prompt = "Once upon a time there was a scheduler. " * 20
    for _ in range(2):  # each of the two in turn
        assert whole.complete(prompt, 2).usage.prompt_tokens_details.cached_tokens == 0
    for _ in range(3):
        usage = whole.complete(prompt, 2).usage
        assert usage.prompt_tokens_details.cached_tokens > 0.9 * usage.prompt_tokens


def test_a_bad_request_is_told_so(whole):
    with pytest.raises(openai.BadRequestError, match="Unsupported parameter"):
        whole.client.completions.create(model="smollm2", prompt="x", extra_body={"use_beam_search": True})


@pytest.mark.parametrize("role", ["decode", "prefill"])
def test_a_killed_worker_costs_no_token(apart, expected, role):
    name = next(name for name in apart.names if name.startswith(role) and name in apart.local.processes)
    found = apart.streams(PROMPTS[2], 120, 4, lambda: apart.kill(name))
    assert [text for text, _, _ in found] == [expected(PROMPTS[2], 120)] * 4
    apart.wait([apart.local.start_worker(role)])  # the next test finds as many


def test_a_killed_worker_of_whole_requests_costs_no_token(whole, expected):
    prompt = "Numbers: " + ", ".join(map(str, range(60))) + ","
    found = whole.streams(prompt, 120, 4, lambda: whole.kill(whole.names[0]))
    assert [text for text, _, _ in found] == [expected(prompt, 120)] * 4
    whole.wait([whole.local.start_worker("agg")])


def test_who_left_kv_behind_ends_when_it_was_fetched(apart):
    apart.complete("Something new. " * 40, 8)
    name = next(name for name in apart.local.processes if name.startswith("prefill"))
    process = apart.local.processes.pop(name)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert time.monotonic() - began < 20, "it waited until nobody came"


def test_kv_aware_routing_beats_round_robin(tmp_path):
    """Six conversations in turns on two workers, whose prompts take long: hit rate and time to the first token."""
    found = {}
    words, rng = ["fox", "dog", "quick", "brown", "lazy", "jumps", "hello", "world"], random.Random(0)
    starts = [f"User {user}: " + " ".join(rng.choice(words) for _ in range(250)) for user in range(6)]
    order = [user for user in range(6) for _ in range(4)]
    rng.shuffle(order)
    for router in ("round-robin", "kv"):
        with Deployment(tmp_path / router, ["agg", "agg"], router) as deployment:
            cached, asked, waits = 0, 0, []
            for turn, user in enumerate(order):
                prompt = f"{starts[user]} question {turn}"
                began = time.monotonic()
                usage = deployment.complete(prompt, 1).usage
                waits.append(time.monotonic() - began)
                cached += usage.prompt_tokens_details.cached_tokens or 0
                asked += usage.prompt_tokens
                time.sleep(0.1)  # for what became of the cache to reach the router
            found[router] = cached / asked, statistics.mean(waits)
    print({router: f"hit rate {hits:.2f}, mean wait {wait * 1000:.0f} ms" for router, (hits, wait) in found.items()})
    assert found["kv"][0] > found["round-robin"][0] + 0.1
    assert found["kv"][1] < found["round-robin"][1]
