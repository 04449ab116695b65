"""`python -m miniserve.dynamo.local`: a whole deployment on this machine: Dynamo's frontend, and workers of each role.

Processes find one another through files in a directory and talk over the loopback: no etcd, no NATS. Each writes a log
there. It is for one machine and for tests; across hosts workers are started one by one, with etcd.
Whoever ends this process, by Ctrl-C or a signal, ends all of them, in order: first who takes requests. A worker that
ends by itself is followed by another of its kind. With `--follow` there are as many as a planner says.
"""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Annotated, Literal

import typer

from miniserve.cli.loading import ModelOption
from miniserve.dynamo import HOW_TO_INSTALL
from miniserve.dynamo.command import run
from miniserve.errors import InvalidRequestError, MiniserveError
from miniserve.hardware.this_machine import num_cores

Mode = Literal["agg", "prefill", "decode"]
LOOK_S = 0.5
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


class Local:
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

    def __enter__(self) -> "Local":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start_frontend(self, port: int, router: str) -> str:
        """Dynamo's, which speaks HTTP, by the name that is returned. There may be several, of all workers each."""
        name = f"frontend-{next(self._numbers)}"
        command = ["-m", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(port)]
        self._start(name, [*command, "--router-mode", router, "--migration-limit", str(MIGRATIONS)], {})
        return name

    def start_worker(self, mode: Mode) -> str:
        """One more, by the name that is returned. It takes requests when its model is loaded."""
        name = f"{mode}-{next(self._numbers)}"
        command = ["-m", "miniserve.dynamo", "--model", self._model, "--disaggregation-mode", mode]
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

    def scale(self, mode: Mode, number: int) -> None:
        """Have so many workers of a kind: start some, or let the newest go."""
        there = [name for name in self.processes if name.startswith(f"{mode}-")]
        for _ in range(number - len(there)):
            self.start_worker(mode)
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


def local(
    model: ModelOption = "smollm2",
    agg: Annotated[int, typer.Option(help="Workers that compute whole requests.", min=0)] = 0,
    prefill: Annotated[int, typer.Option(help="Workers for prompts.", min=0)] = 0,
    decode: Annotated[int, typer.Option(help="Workers that go on behind them.", min=0)] = 0,
    port: Annotated[int, typer.Option(help="The frontend's.", min=1, max=65535)] = 8000,
    router: Annotated[Literal["kv", "round-robin", "random"], typer.Option(help="How it chooses a worker.")] = "kv",
    kv_cache_mib: Annotated[int, typer.Option(help="Memory for the KV cache, of each worker.", min=1)] = 512,
    threads: Annotated[int | None, typer.Option(help="Of each worker; default: its share of the cores.", min=1)] = None,
    directory: Annotated[Path | None, typer.Option(help="For logs; default: a new one.")] = None,
    follow: Annotated[
        str | None, typer.Option(help="A namespace: have as many workers as miniserve.dynamo.planner says there.")
    ] = None,
    options: Annotated[list[str] | None, typer.Argument(help="Behind --: options of each worker.")] = None,
) -> None:
    """Run Dynamo's frontend and workers of ours on this machine, until Ctrl-C."""
    if not agg and not (prefill and decode):
        raise InvalidRequestError("nobody would answer: --agg 1 at least, or --prefill 1 and --decode 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    where = directory or Path(tempfile.mkdtemp(prefix="miniserve-dynamo-"))
    counts: dict[Mode, int] = {"agg": agg, "prefill": prefill, "decode": decode}
    share = threads or max(num_cores() // sum(counts.values()), 1)
    with Local(
        where, model, ["--kv-cache-mib", str(kv_cache_mib), "--threads", str(share), *(options or ())]
    ) as deployment:
        deployment.start_frontend(port, router)
        for mode, number in counts.items():
            for _ in range(number):
                deployment.start_worker(mode)
        typer.echo(f"http://127.0.0.1:{port}/v1 once the models are loaded; logs in {where}")
        asyncio.run(_look_after(deployment, follow))


async def _look_after(deployment: Local, namespace: str | None) -> None:
    """Until it is cancelled."""
    following = asyncio.create_task(_follow(deployment, namespace)) if namespace else None
    while True:
        await asyncio.sleep(LOOK_S)
        if following and following.done():
            following.result()  # it only ends by an error
        for name in deployment.dead():
            if name.startswith("frontend"):
                raise MiniserveError(f"the frontend has ended: see {deployment.log(name)}")
            typer.echo(f"{name} has ended: see {deployment.log(name)}; another one is started")
            deployment.start_worker(name.rpartition("-")[0])  # type: ignore[arg-type]


async def _follow(deployment: Local, namespace: str) -> None:
    """Have as many workers for prompts, and behind them, as is published.

    That is done when the processes have been started, and those that were let go have ended.
    """
    from miniserve.dynamo.scaling import Follower, runtime

    connected = runtime()
    try:
        follower = Follower(connected, namespace)
        while True:
            counts = await follower.wanted()
            typer.echo(f"{counts.prefill} workers for prompts, {counts.decode} behind them")
            deployment.scale("prefill", counts.prefill)
            deployment.scale("decode", counts.decode)
            while not deployment.is_settled:
                await asyncio.sleep(LOOK_S)
            await follower.done()
    finally:
        connected.shutdown()


if __name__ == "__main__":
    run(local)
