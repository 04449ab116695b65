"""A peer as the benchmark sees it: a process that answers one line for one line."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from peers.environments import reason_in, without_paths


class PeerError(Exception):
    """A peer failed; the text is one line that says why."""


class PeerProcess:
    """A running peer. `start` it, `ask` it, `end` it; ending it ends whatever it started too.

    Args:
        command: the peer's Python and script.
        variables: added to the environment.
        log: what it writes to stderr goes here.
        timeout_s: longest time for one answer.
    """

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], log: Path, timeout_s: float) -> None:
        self._command, self._variables, self._log, self._timeout_s = command, variables, log, timeout_s
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()

    def start(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
        """Start it and wait until its model is loaded. Returns what it says of itself, and the seconds it took."""
        started = time.perf_counter()
        self._answers = queue.Queue()
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=os.environ | self._variables,
                start_new_session=True,  # a group of its own: Ctrl-C is ours to pass on, and `end` reaches all of it
            )  # fmt: skip
        threading.Thread(target=self._read, args=(self._process, self._answers), daemon=True).start()
        ready = self.ask({"options": options})
        return ready, time.perf_counter() - started

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Send a line and wait for its answer.

        Raises:
            PeerError: the answer is an error, the process ended, or no answer came in time (it is ended then).
        """
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=self._timeout_s)
        except OSError:  # it is gone already
            line = None
        except queue.Empty:
            self.end()
            raise PeerError(f"no answer within {self._timeout_s:g} s") from None
        if line is None:
            raise PeerError(self._why_it_ended())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(without_paths(answer["error"]))
        return answer

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def cpu_seconds(self) -> float:
        """CPU time that it and its children have used so far."""
        total = 0.0
        with contextlib.suppress(psutil.Error):
            if self._process is not None and self.alive:
                root = psutil.Process(self._process.pid)
                for each in (root, *root.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        times = each.cpu_times()
                        total += times.user + times.system
        return total

    def end(self) -> None:
        """End it and all that it started, now."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @staticmethod
    def _read(process: "subprocess.Popen[str]", answers: "queue.Queue[str | None]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            answers.put(line)
        answers.put(None)

    def _why_it_ended(self) -> str:
        assert self._process is not None
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.end()
            return f"closed its output: {reason_in(self._log)}"
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return f"{how}: {reason_in(self._log)}"
