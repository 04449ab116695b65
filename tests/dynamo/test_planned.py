"""A planner and a deployment that follows it, as a user starts them: more workers under load, fewer after it.

Four kinds of processes: etcd, the deployment with its frontend and workers, the planner, and clients.
"""

import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager

import openai
import pytest

pytest.importorskip("dynamo.common", reason="NVIDIA Dynamo is not installed")

from miniserve.dynamo.local_deployment import free_port
from support.deployment import OPTIONS, eventually
from support.etcd import etcd

LOOK_S = 4  # the planner looks so often, and takes a worker away when ten looks have found too many
SAID = re.compile(r"^(\d) workers for prompts, 1 behind them$", re.MULTILINE)
TOKENS = 8


@contextmanager
def program(arguments, log, environment):
    """Run one of ours until the block ends."""
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", *arguments], env=environment, stdout=file, stderr=file)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@pytest.mark.timeout(600)  # most of it is waiting: for models to load, and for ten quiet looks
def test_workers_come_with_a_load_and_go_after_it_once(tmp_path, expected, record_property):
    port, logs = free_port(), {name: tmp_path / f"{name}.log" for name in ("local", "planner")}
    address = f"http://127.0.0.1:{port}"
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120)
    asked: dict[str, str] = {}

    def ask(prompt):
        extra = {"ignore_eos": True}
        found = client.completions.create(
            model="smollm2", prompt=prompt, max_tokens=TOKENS, temperature=0, extra_body=extra
        )
        asked[prompt] = found.choices[0].text

    def answers():
        try:
            ask("x")
        except openai.OpenAIError:
            return False
        return True

    def said():
        return [*map(int, SAID.findall(logs["local"].read_text()))]

    def load(user):
        for turn in range(100):
            if stop.is_set():
                return
            ask(f"{user}, {turn}: " + "a story that nobody has told before, " * 20)

    with ExitStack() as stack:
        environment = stack.enter_context(etcd(tmp_path))
        deployment = [
            *("miniserve.dynamo.local", "--prefill", "1", "--decode", "1", "--follow", "planned", "--port", str(port)),
            *("--directory", str(tmp_path / "deployment"), *OPTIONS),
        ]
        stack.enter_context(program(deployment, logs["local"], environment))
        assert eventually(answers, 240), logs["local"].read_text()[-2000:]
        planner = [
            *("miniserve.dynamo.planner", "--namespace", "planned", "--frontend", address),
            *("--capacity", "30:8:40", "--prefill", "1-2", "--decode", "1-1", "--plan-seconds", str(LOOK_S)),
        ]
        stack.enter_context(program(planner, logs["planner"], environment))
        assert eventually(lambda: said() == [1], 60), logs["planner"].read_text()[-2000:]

        stop, began = threading.Event(), time.monotonic()
        users = [threading.Thread(target=load, args=(user,)) for user in range(3)]
        for user in users:
            user.start()
        more = eventually(lambda: said() == [1, 2], 60)
        record_property("until_more_s", round(time.monotonic() - began, 1))
        second = eventually(lambda: b"Serving" in (tmp_path / "deployment" / "prefill-4.log").read_bytes(), 120)
        time.sleep(3 * LOOK_S)  # it stays so under the load
        stop.set()
        for user in users:
            user.join()
        assert more, logs["planner"].read_text()[-2000:]
        assert second, "the second worker did not serve in two minutes"
        assert said() == [1, 2]

        ended = time.monotonic()
        assert eventually(lambda: said() == [1, 2, 1], 30 * LOOK_S), logs["planner"].read_text()[-2000:]
        record_property("until_fewer_s", round(time.monotonic() - ended, 1))
        assert answers()
        time.sleep(3 * LOOK_S)
        assert said() == [1, 2, 1], "it swung"

    record_property("requests", len(asked))
    assert len(asked) > 6
    assert asked == {prompt: expected(prompt, TOKENS) for prompt in asked}
