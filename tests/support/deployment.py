"""A deployment of NVIDIA Dynamo on this machine, with workers of ours, and what a client sees of it."""

import itertools
import os
import re
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import openai
import pytest

from miniserve.dynamo.local_deployment import LocalDeployment, free_port

OPTIONS = ["--kv-cache-mib", "200", "--threads", "1"]


class Streamed(NamedTuple):
    """A stream's text, when its first part came, and the longest wait for a part after that; in seconds."""

    text: str
    first: float
    pause: float


class Deployment:
    """Some workers behind two frontends, one with each router, that know all of them.

    Invariants: inside the block every worker in `local.processes` has said that it serves.
    """

    def __init__(self, directory: Path, workers: Sequence[str]) -> None:
        directory.mkdir(exist_ok=True)
        self.local = LocalDeployment(directory, "smollm2", OPTIONS)
        self._ports = {router: free_port() for router in ("kv", "round-robin")}
        for router, port in self._ports.items():
            self.local.start_frontend(port, router)
        self._begun = [self.local.start_worker(mode) for mode in workers]
        self.clients = {
            router: openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120)
            for router, port in self._ports.items()
        }

    def __enter__(self) -> "Deployment":
        try:
            self.wait(self._begun)
        except BaseException:
            self.local.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.local.end()

    def workers(self, role: str) -> list[str]:
        """The names of those that live."""
        return [name for name in self.local.processes if name.startswith(role)]

    def wait(self, names: Sequence[str], seconds: float = 240) -> None:
        """Until each of those has said that it serves, and both frontends answer."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert not self.local.dead(), "a process has ended by itself"
            said = all(b"Serving smollm2" in self.local.log(name).read_bytes() for name in names)
            if said and all(self.answers(router) for router in self.clients):
                return
            time.sleep(0.5)
        pytest.fail("\n".join(self.local.log(name).read_text()[-2000:] for name in self.local.processes))

    def answers(self, router: str = "kv") -> bool:
        """Whether a request is answered now."""
        try:
            return bool(self.complete("x", 2, router))
        except openai.OpenAIError:
            return False

    def complete(self, prompt: str, tokens: int, router: str = "kv", **asked: object):
        """A completion, as the client gives it."""
        return self.clients[router].completions.create(
            model="smollm2", prompt=prompt, max_tokens=tokens, temperature=0, extra_body={"ignore_eos": True}, **asked
        )

    def stream(
        self, prompt: str, tokens: int, router: str = "kv", seen: Callable[[], object] = lambda: None
    ) -> Streamed:
        """One request; `seen` is called with each part."""
        began, text, moments = time.monotonic(), "", []
        for part in self.complete(prompt, tokens, router, stream=True):
            moments.append(time.monotonic() - began)
            text += part.choices[0].text if part.choices else ""
            seen()
        return Streamed(text, moments[0], max(later - sooner for sooner, later in itertools.pairwise(moments)))

    def streams(
        self, prompts: Sequence[str], tokens: int, router: str, parts: int, meanwhile: Callable[[], object]
    ) -> list[Streamed]:
        """One of each prompt at once; `meanwhile` is called when each of them has so many parts."""
        found: dict[int, Streamed] = {}
        counts = [0] * len(prompts)

        def follow(number: int) -> None:
            def seen() -> None:
                counts[number] += 1

            found[number] = self.stream(prompts[number], tokens, router, seen)

        threads = [threading.Thread(target=follow, args=(number,)) for number in range(len(prompts))]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 60
        while min(counts) < parts and time.monotonic() < until:
            time.sleep(0.01)
        meanwhile()
        for thread in threads:
            thread.join()
        return [found[number] for number in range(len(prompts)) if number in found]

    def kill(self, name: str) -> None:
        """The worker's process, which its engine's does not outlive."""
        os.kill(self.local.processes.pop(name).pid, signal.SIGKILL)

    def gauge(self, name: str, metric: str, labels: str = "") -> float:
        """Of what Dynamo says of that worker, or with a router's name, of what its frontend counts; the sum."""
        port = self._ports.get(name)
        url = f"http://127.0.0.1:{port}/metrics" if port else self.local.metrics_url(name)
        with urllib.request.urlopen(url, timeout=10) as answer:
            said = answer.read().decode()
        return sum(
            float(value) for value in re.findall(rf"^{metric}{{[^}}]*{labels}[^}}]*}} (\S+)$", said, re.MULTILINE)
        )

    def rooms(self, name: str) -> int:
        """How many rooms with KV that worker holds for others: they are files in memory."""
        pid = self.local.processes[name].pid
        below = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
        links = [link for each in (str(pid), *below) for link in Path(f"/proc/{each}/fd").iterdir()]
        return sum("miniserve-kv" in _target(link) for link in links)


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # closed since
        return ""


def eventually(holds: Callable[[], bool], seconds: float) -> bool:
    """Whether it comes to hold in that time."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True
