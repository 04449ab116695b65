"""`LocalDeployment`: a deployment's processes, all on this machine: Dynamo's frontend, and workers of each role.

They find one another through files in a directory and talk over the loopback: no etcd, no NATS. Each writes a log
there. They end with the deployment, in order: first who takes requests. None starts another by itself: who has ended
is told, and whoever drives the deployment says what follows.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path

from miniserve.dynamo import HOW_TO_INSTALL
from miniserve.dynamo.answers import Role
from miniserve.errors import MiniserveError

PORTS = range(20_000, 2**15)  # Dynamo reads a system port as a number of 16 bits with a sign
END_S = 30.0  # a prefill worker waits for what it has left to be fetched
MIGRATIONS = 3  # of one request, from a worker that died to another


def environment(directory: Path) -> dict[str, str]:
    """What a deployment's processes are told: to find one another in `directory`, and to stay on this machine.

    Raises:
        MiniserveError: Dynamo is not installed.
    """
    try:
        release = version("ai-dynamo-runtime")
    except PackageNotFoundError as error:
        raise MiniserveError(f"this needs NVIDIA Dynamo: {HOW_TO_INSTALL}") from error
    by_interface = tuple(map(int, release.split(".")[:2])) < (1, 6)  # before that it wanted the interface's name
    return os.environ | {
        "DYN_DISCOVERY_BACKEND": "file",
        "DYN_FILE_KV": str(directory / "discovery"),
        "DYN_REQUEST_PLANE": "tcp",
        "DYN_EVENT_PLANE": "zmq",
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "lo" if by_interface else "127.0.0.1",
        "DYN_EVENT_PLANE_HOST": "127.0.0.1",
        "DYN_SYSTEM_HOST": "127.0.0.1",
        "DYN_SDK_DISABLE_ANSI_LOGGING": "1",
        "DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS": "0",
        "HF_HUB_OFFLINE": "1",
    }


class LocalDeployment:
    """The processes. Use it as a context manager: leaving the block ends them.

    Args:
        directory: for logs, and for the processes to find one another; one for each deployment.
        model: by any name.
        options: further ones of each worker.
    """

    def __init__(self, directory: Path, model: str, options: Sequence[str] = ()) -> None:
        self._directory, self._model, self._options = directory, model, options
        self._environment = environment(directory)
        self._numbers = count(1)
        self._ports: dict[str, int] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._leaving: list[subprocess.Popen[bytes]] = []
        (directory / "discovery").mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "LocalDeployment":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start_frontend(self, port: int, router: str) -> str:
        """Dynamo's, which speaks HTTP, by the name that is returned. There may be several, of all workers each."""
        name = f"frontend-{next(self._numbers)}"
        command = ["-m", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(port)]
        self._start(name, [*command, "--router-mode", router, "--migration-limit", str(MIGRATIONS)], {})
        return name

    def start_worker(self, role: Role) -> str:
        """One more, by the name that is returned. It takes requests when its model is loaded."""
        name = f"{role}-{next(self._numbers)}"
        command = ["-m", "miniserve.dynamo", "--model", self._model, "--disaggregation-mode", role]
        self._ports[name] = free_port()
        self._start(name, [*command, *self._options], {"DYN_SYSTEM_PORT": str(self._ports[name])})
        return name

    def metrics_url(self, name: str) -> str:
        """Where Dynamo says what that worker does."""
        return f"http://127.0.0.1:{self._ports[name]}/metrics"

    def end_worker(self, name: str) -> None:
        """Have it finish what it has, and end; it is no longer among the processes."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        self._leaving.append(process)

    def scale(self, role: Role, number: int) -> None:
        """Have so many workers of a kind: start some, or let the newest go."""
        there = [name for name in self.processes if name.startswith(f"{role}-")]
        for _ in range(number - len(there)):
            self.start_worker(role)
        for name in there[number:]:
            self.end_worker(name)

    @property
    def is_settled(self) -> bool:
        """Whether all that were let go have ended."""
        self._leaving = [process for process in self._leaving if process.poll() is None]
        return not self._leaving

    def dead(self) -> list[str]:
        """Those that have ended since the last call."""
        names = [name for name, process in self.processes.items() if process.poll() is not None]
        for name in names:
            del self.processes[name]
        return names

    def end(self) -> None:
        """End all, and wait for it."""
        every = [*self.processes.values(), *self._leaving]  # the frontend was started first
        for process in every:
            process.terminate()
        until_s = time.monotonic() + END_S
        for process in every:
            try:
                process.wait(max(until_s - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()
        self._leaving.clear()

    def log(self, name: str) -> Path:
        """Where that process writes."""
        return self._directory / f"{name}.log"

    def _start(self, name: str, arguments: Sequence[str], more: Mapping[str, str]) -> None:
        with self.log(name).open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *arguments],
                env={**self._environment, **more},
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us, who end them in order
            )


def free_port() -> int:
    """A port of the loopback that nobody has now."""
    for number in random.sample(PORTS, len(PORTS)):
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", number))
            return number
    raise MiniserveError(f"no port from {PORTS.start} to {PORTS.stop - 1} is free")
