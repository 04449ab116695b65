"""Real deployments on this machine: Dynamo's frontend, workers of ours with SmolLM2, the `openai` client, aiperf.

Where Dynamo is not installed all of it is skipped: `make test-fleet` installs it and runs this.
"""

import json
import os
import shutil
import signal
import subprocess
import time

import openai
import pytest

pytest.importorskip("dynamo.common", reason="NVIDIA Dynamo is not installed")

from support.deployment import eventually

PROMPTS = ["The capital of France is", "1, 2, 3,", "The quick brown fox jumps over the lazy dog. " * 30]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_whole_and_apart_say_what_the_engine_says(whole, apart, expected, prompt, record_property):
    for name, deployment in (("whole", whole), ("apart", apart)):
        found = [deployment.stream(prompt, 24, router) for router in ("kv", "round-robin", "kv")]  # and from caches
        assert [each.text for each in found] == [expected(prompt, 24)] * 3
        record_property(f"{name}_first_token_s", [round(each.first, 3) for each in found])


def test_a_chat_streams_its_text_and_its_usage(apart):
    parts = list(
        apart.clients["kv"].chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": "Say hello."}],
            max_tokens=12,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert [part.usage for part in parts if part.usage][-1].completion_tokens in range(1, 13)
    assert len([part for part in parts if part.choices]) > 3, "it came at once"


def test_what_was_computed_before_is_found_where_it_is(whole):
    prompt = "Once upon a time there was a scheduler. " * 20
    for _ in range(2):  # each of the two in turn
        assert whole.complete(prompt, 2, "round-robin").usage.prompt_tokens_details.cached_tokens == 0
    for router in ("round-robin", "round-robin", "kv"):
        usage = whole.complete(prompt, 2, router).usage
        assert usage.prompt_tokens_details.cached_tokens > 0.9 * usage.prompt_tokens


def test_a_bad_request_is_told_so(whole):
    with pytest.raises(openai.BadRequestError, match="Unsupported parameter"):
        whole.clients["kv"].completions.create(model="smollm2", prompt="x", extra_body={"use_beam_search": True})


@pytest.mark.parametrize("parts", [0, 5], ids=["in its prompt", "in its output"])
def test_a_client_that_leaves_frees_what_was_held_for_it(apart, parts):
    """On both sides; the output would have taken minutes."""
    names = [*apart.workers("prefill"), *apart.workers("decode")]
    assert eventually(lambda: not any(apart.rooms(name) for name in names), 70), "left from before"
    stream = apart.complete("A long story, told at length. " * 60, 4000, stream=True)
    for _ in range(parts):
        next(iter(stream))
    if parts:
        assert eventually(lambda: any(_in_use(apart, name) for name in apart.workers("decode")), 5)
    stream.close()
    assert eventually(lambda: not any(_in_use(apart, name) for name in names), 10)


def _in_use(deployment, name):
    return deployment.gauge(name, "dynamo_component_gpu_cache_usage_percent")


def test_who_left_kv_behind_ends_when_it_was_fetched(apart):
    apart.complete("Something new. " * 40, 8)
    name = apart.workers("prefill")[0]
    process = apart.local.processes.pop(name)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert time.monotonic() - began < 20, "it waited until nobody came"
    apart.wait([apart.local.start_worker("prefill")])  # the next test finds as many


def test_aiperf_measures_it_through_the_frontend(apart, tmp_path, record_property):
    """In an environment of its own; `AIPERF` names its command."""
    from miniserve.dynamo.model_directory import model_directory

    aiperf = os.environ.get("AIPERF") or shutil.which("aiperf")
    if not aiperf:
        pytest.skip("aiperf is not installed: AIPERF names its command")
    told = subprocess.run(
        [
            *(aiperf, "profile", "--model", "smollm2", "--url", str(apart.clients["kv"].base_url).removesuffix("/v1/")),
            *("--endpoint-type", "chat", "--streaming", "--tokenizer", model_directory("smollm2")),
            *("--synthetic-input-tokens-mean", "64", "--synthetic-input-tokens-stddev", "0"),
            *("--output-tokens-mean", "32", "--concurrency", "2", "--request-count", "8"),
            *("--extra-inputs", "ignore_eos:true", "--artifact-dir", tmp_path),
        ],
        env={name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert told.returncode == 0, told.stdout[-2000:] + told.stderr[-2000:]
    (summary,) = tmp_path.rglob("profile_export_aiperf.json")
    told = json.loads(summary.read_text())
    assert told["request_count"]["avg"] == 8
    record_property("first_token_ms", told["time_to_first_token"]["avg"])
