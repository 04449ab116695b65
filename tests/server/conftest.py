"""A real server process with a tiny random model, reached over real sockets."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

import httpx
import openai
import psutil
import pytest

from support import tiny_models

TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"
)


class Server:
    """One `miniserve serve` process, its address, and clients for it."""

    def __init__(self, model, *options, verify=True, **environment):
        command = [sys.executable, "-m", "miniserve", "serve", "--served-model-name", "tiny", "--port", "0"]
        command += ["--dtype", "float32", "--device", "cpu", "--backend", "torch", "--threads", "1", *options]
        command += [] if model is None else [model]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed below. A pipe that nobody empties would stop it
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log, text=True, env=os.environ | environment
        )
        line = self.process.stdout.readline()
        found = re.search(r"https?://\S+:\d+", line)
        if not found:
            self.process.wait(timeout=30)
            raise RuntimeError(f"no address in {line!r}: {self._written()}")
        self.url = found.group()
        self.http = httpx.Client(base_url=self.url, timeout=60, verify=verify)

    def openai(self, key="none"):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def metric(self, name):
        """The sum of a series over its labels."""
        lines = self.http.get("/metrics").text.splitlines()
        values = [float(line.split()[-1]) for line in lines if re.match(rf"miniserve:{name}\{{", line)]
        assert values, f"no series {name}"
        return sum(values)

    def until(self, condition, timeout_s=30):
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "it did not come about"
            time.sleep(0.05)

    def engine_pid(self):
        (pid,) = [
            child.pid for child in psutil.Process(self.process.pid).children() if "spawn_main" in str(child.cmdline())
        ]
        return pid

    def end(self, number=signal.SIGTERM):
        """Send a signal; returns the exit code and the log's lines."""
        self.process.send_signal(number)
        self.process.wait(timeout=60)
        return self.process.returncode, [json.loads(line) for line in self._written() if line.startswith("{")]

    def _written(self):
        self._log.seek(0)
        return self._log.read().splitlines()

    def close(self):
        self.http.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self._log.close()


@pytest.fixture(scope="session")
def tiny_chat_model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("served")
    tiny_models.save("llama", directory)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    config = json.loads((directory / "config.json").read_text())
    # Room for requests that go on while a test looks at them.
    (directory / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 16384}))
    return str(directory)


@pytest.fixture(scope="session")
def start(tiny_chat_model):
    """`with start(*options) as server`: a server of one's own, of the tiny model unless another is named, or None."""

    @contextlib.contextmanager
    def run(*options, model=tiny_chat_model, **others):
        server = Server(model, *options, **others)
        try:
            yield server
        finally:
            server.close()

    return run
