"""Workers that die or fall silent in real deployments of Dynamo: what a client sees, and what becomes of KV."""

import os
import signal
import time

import openai
import pytest

pytest.importorskip("dynamo.common", reason="NVIDIA Dynamo is not installed")

from importlib.metadata import version

from support.deployment import eventually

PROMPTS = [f"{name}: " + ", ".join(map(str, range(40))) + "," for name in ("Numbers", "More", "And more", "The last")]
TOKENS = 80
PAUSE_S = 60.0  # with the prompts that are computed again on a busy machine; the death itself is seen at once
# 1.4 asks a dead worker again, and refuses a request that it has seen; but not with whole requests in turn.
OLD = version("ai-dynamo-runtime").startswith("1.4")
CASES = [("agg", "round-robin")] if OLD else [("agg", "round-robin"), ("agg", "kv"), ("decode", "kv")]


@pytest.mark.parametrize(("role", "router"), CASES)
def test_a_worker_killed_in_its_outputs_costs_no_token(role, router, whole, apart, expected, record_property):
    deployment = whole if role == "agg" else apart
    before = deployment.gauge(router, "dynamo_frontend_model_migration_total")
    victim = deployment.workers(role)[0]
    found = deployment.streams(PROMPTS, TOKENS, router, 5, lambda: deployment.kill(victim))
    record_property("pauses_s", [round(each.pause, 3) for each in found])
    assert [each.text for each in found] == [expected(prompt, TOKENS) for prompt in PROMPTS]
    assert deployment.gauge(router, "dynamo_frontend_model_migration_total") > before, "nothing was lost with it"
    assert max(each.pause for each in found) < PAUSE_S
    deployment.wait([deployment.local.start_worker(role)])  # the next test finds as many


def test_a_worker_killed_in_its_prompts_costs_no_token(apart, expected):
    router = "round-robin" if OLD else "kv"
    prompts = [prompt + " and so on," + prompt * 3 for prompt in PROMPTS]
    victim = apart.workers("prefill")[0]

    def kill_it_at_work():
        assert eventually(lambda: apart.gauge(victim, "dynamo_component_inflight_requests", "generate") > 0, 10)
        apart.kill(victim)

    found = apart.streams(prompts, 20, router, 0, kill_it_at_work)
    assert [each.text for each in found] == [expected(prompt, 20) for prompt in prompts]
    apart.wait([apart.local.start_worker("prefill")])


def test_silence_ends_in_an_error_and_what_was_left_is_given_up(apart, record_property):
    """Both decode workers stand still, as behind a cut cable: clear errors in bounded time, then all is well again.

    The KV that they do not fetch goes when its time is up. They are out of the deployment after a lease, and end when
    they notice, for others to be started.
    """
    stopped = apart.workers("decode")
    for name in stopped:
        os.kill(apart.local.processes[name].pid, signal.SIGSTOP)
    began = time.monotonic()
    for _ in range(2):
        with pytest.raises(openai.APIStatusError) as told:
            apart.complete("Who is there? " * 30, 8)
        assert told.value.status_code in (404, 500, 503, 504)
    record_property("until_told_s", round(time.monotonic() - began, 2))
    assert time.monotonic() - began < 30
    held = sum(apart.rooms(name) for name in apart.workers("prefill"))
    assert held, "nothing was left for them"
    time.sleep(max(0.0, 15 - (time.monotonic() - began)))
    for name in stopped:
        os.kill(apart.local.processes[name].pid, signal.SIGCONT)
    assert eventually(lambda: all(apart.local.processes[name].poll() is not None for name in stopped), 30)
    assert sorted(apart.local.dead()) == sorted(stopped)
    apart.wait([apart.local.start_worker("decode") for _ in stopped])
    assert eventually(lambda: not any(apart.rooms(name) for name in apart.workers("prefill")), 70)


def test_without_anybody_for_prompts_it_is_told_so_until_one_comes(apart, expected):
    for name in apart.workers("prefill"):
        apart.kill(name)
    began = time.monotonic()
    with pytest.raises(openai.APIStatusError):
        apart.complete(PROMPTS[0], 8)
    assert time.monotonic() - began < 30
    apart.wait([apart.local.start_worker("prefill") for _ in range(2)])
    assert apart.complete(PROMPTS[0], 8).choices[0].text == expected(PROMPTS[0], 8)
