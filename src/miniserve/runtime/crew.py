"""`Crew`: the processes that compute with this one: it starts them, talks to them, notices when one is gone, ends them.

They are started as programs of their own: not forked, because a fork would copy locks that torch's threads hold, and
not by `multiprocessing`, which would run the caller's script again in each. They have sessions of their own, so that
Ctrl-C in a terminal reaches the caller alone, who decides what it means.

A step that fails in one process leaves the others waiting in the middle of it, so nothing can be computed with them any
more: all end, and every later step says why. A thread sleeps on the pipes and wakes when one breaks; that is the only
thing here that is not done in the caller's thread.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch

from miniserve.errors import RankError
from miniserve.runtime.member import Failed

START_S = 120.0  # for a process to have torch imported
CAUSE_S = 2.0  # after one has lost another, for what is known of that one
NOTICE_S = 5.0  # after a failure, for what is known of a process that is gone
END_S = 5.0  # to end when told, before it is killed


class _LostAnotherError(RankError):
    """Of a process that failed because another was gone."""


class _Member(NamedTuple):
    """A process: its rank, which is its name, and the pipe to it."""

    rank: int
    process: subprocess.Popen[bytes]
    pipe: Connection


class Crew:
    """Processes, none at first. Until it is closed, torch's CPU threads are shared out: this process has its share.

    Args:
        size: how many processes there will be, this one too.

    Attributes:
        threads: of torch, for each process.
        folder: for files by which they find one another; it goes with the crew.
    """

    def __init__(self, size: int) -> None:
        self._lost: list[str] = []  # why no step can be computed any more, once that is so
        self._members: list[_Member] = []
        self._watchers: list[threading.Thread] = []
        all_threads = torch.get_num_threads()
        folder = tempfile.TemporaryDirectory(prefix="miniserve-")
        self.folder, self.threads = Path(folder.name), max(1, all_threads // size)
        # Also when this object is forgotten, and when the interpreter ends.
        self._end = weakref.finalize(self, _end, self._members, self._watchers, folder, all_threads)
        torch.set_num_threads(self.threads)

    def start(self, rank: int, module: str, job: Any) -> None:
        """Start one more, with a job; its program is a module's `main`, which is to call `member.run`."""
        ours, theirs = Pipe()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", program(module), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a library prints there must not get into this process's output
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        member = _Member(rank, process, ours)
        self._members.append(member)
        _tell(member, job)

    def tell(self, what: Any) -> None:
        """All of them the same."""
        for member in self._members:
            _tell(member, what)

    def receive(self, timeout_s: float) -> list[Any]:
        """The next thing that each of them says, in the order in which they were started.

        Raises:
            RankError: one says that it failed, or nothing.
        """
        return [_receive(member, timeout_s) for member in self._members]

    def heard(self) -> None:
        """Whatever they have said by now, if it is that one failed.

        Raises:
            RankError: it is.
        """
        for member in self._members:
            if member.pipe.poll():
                _receive(member, 0)

    def watch(self, abort: Callable[[], None]) -> None:
        """From now on they say nothing unless asked: whoever does has failed, and `abort` ends our waits for it."""
        watcher = threading.Thread(target=_watch, args=(self._members, self._lost, abort), daemon=True)
        self._watchers.append(watcher)
        watcher.start()

    @contextmanager
    def computing(self, what: Any) -> Iterator[None]:
        """Tell all of them what the caller computes within the block.

        Raises:
            RankError: one is gone, before or in the middle of it.
        """
        self.check()
        try:
            for member in self._members:
                member.pipe.send(what)
            yield
        except BaseException as error:
            for watcher in self._watchers:
                watcher.join(NOTICE_S)
            gone = bool(self._lost)
            self._lost.append(f"rank 0 failed in a step: {error!r}")
            self.kill()
            if gone:
                raise self._error() from error
            raise

    def check(self) -> None:
        """See that nobody is gone.

        Raises:
            RankError: one is, or a step has failed before.
        """
        if self._lost:
            raise self._error()

    def close(self) -> None:
        """End them."""
        self._end()

    def kill(self) -> None:
        """End them without asking: whatever they wait for will not come."""
        for member in self._members:
            member.process.kill()
        self.close()

    def _error(self) -> RankError:
        return RankError(f"{self._lost[0]}\nNothing more can be computed with these ranks: load the model again")


class CrewOwner:
    """Who computes with a crew. Use it as a context manager: leaving the block ends the crew."""

    _crew: Crew

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def check(self) -> None:
        """See that nobody is gone.

        Raises:
            RankError: one is, or a step has failed before.
        """
        self._crew.check()

    def close(self) -> None:
        """End the others."""
        self._crew.close()


def program(module: str) -> str:
    """What a member runs."""
    return f"from {module} import main; main()"


def _tell(member: _Member, what: Any) -> None:
    """Send; if it has ended already, the answer that does not come says so."""
    with suppress(OSError):
        member.pipe.send(what)


def _receive(member: _Member, timeout_s: float) -> Any:
    name = f"rank {member.rank} (process {member.process.pid})"
    if not member.pipe.poll(timeout_s):
        raise RankError(f"{name} has said nothing for {timeout_s:g} s")
    try:
        said = member.pipe.recv()
    except (EOFError, OSError):
        raise RankError(f"{name} {_ending(member.process)}") from None
    if isinstance(said, Failed):
        kind = _LostAnotherError if said.lost_another else RankError
        raise kind(f"{name} failed:\n{said.traceback}")
    return said


def _ending(process: subprocess.Popen[bytes]) -> str:
    """How a process ended."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(NOTICE_S)
    code = process.returncode
    if code is None:
        return "has closed its pipe"
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"


def _watch(members: list[_Member], lost: list[str], abort: Callable[[], None]) -> None:
    """Sleep until one says that it failed, or is gone; then end this process's waits for it.

    Of several the one that lost no other is the cause, whichever is heard first.
    """
    lost.append(_cause(list(members)))
    abort()


def _cause(members: list[_Member]) -> str:
    followed = ""
    while members and (ready := wait([each.pipe for each in members], CAUSE_S if followed else None)):
        for member in [each for each in members if each.pipe in ready]:
            members.remove(member)
            try:
                _receive(member, 0)
            except _LostAnotherError as error:
                followed = followed or str(error)
            except RankError as error:
                return str(error)
    return followed


def _end(
    members: list[_Member],
    watchers: list[threading.Thread],
    folder: "tempfile.TemporaryDirectory[str]",
    all_threads: int,
) -> None:
    for member in members:
        _tell(member, None)
    for member in members:
        try:
            member.process.wait(END_S)
        except subprocess.TimeoutExpired:
            member.process.kill()
            member.process.wait()
    for watcher in watchers:
        watcher.join()
    for member in members:
        member.pipe.close()
    folder.cleanup()
    torch.set_num_threads(all_threads)
