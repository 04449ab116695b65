"""`Crew`: the processes that compute with this one: it starts them, talks to them, notices when one is gone, ends them.

A step that fails in one process leaves the others waiting in the middle of it, so nothing can be computed with them any
more: all end, and every later step says why. A thread sleeps on the pipes and wakes when one breaks; that is the only
thing here that is not done in the caller's thread.
"""

import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from miniserve.errors import RankError
from miniserve.runtime.member_handle import NOTICE_S, LostAnotherError, MemberHandle

START_S = 120.0  # for a process to have torch imported
CAUSE_S = 2.0  # after one has lost another, for what is known of that one


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
        self._members: list[MemberHandle] = []
        self._watchers: list[threading.Thread] = []
        all_threads = torch.get_num_threads()
        folder = tempfile.TemporaryDirectory(prefix="miniserve-")
        self.folder, self.threads = Path(folder.name), max(1, all_threads // size)
        # Also when this object is forgotten, and when the interpreter ends.
        self._end = weakref.finalize(self, _end, self._members, self._watchers, folder, all_threads)
        torch.set_num_threads(self.threads)

    def start(self, rank: int, module: str, job: Any) -> None:
        """Start one more, with a job; its program is a module's `main`, which is to call `member.run`."""
        member = MemberHandle(rank, module)
        self._members.append(member)
        member.tell(job)

    def tell(self, what: Any) -> None:
        """All of them the same."""
        for member in self._members:
            member.tell(what)

    def receive(self, timeout_s: float) -> list[Any]:
        """The next thing that each of them says, in the order in which they were started.

        Raises:
            RankError: one says that it failed, or nothing.
        """
        return [member.receive(timeout_s) for member in self._members]

    def heard(self) -> None:
        """Whatever they have said by now, if it is that one failed.

        Raises:
            RankError: it is.
        """
        for member in self._members:
            if member.pipe.poll():
                member.receive(0)

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
            member.kill()
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


def _watch(members: list[MemberHandle], lost: list[str], abort: Callable[[], None]) -> None:
    """Sleep until one says that it failed, or is gone; then end this process's waits for it.

    Of several the one that lost no other is the cause, whichever is heard first.
    """
    lost.append(_cause(list(members)))
    abort()


def _cause(members: list[MemberHandle]) -> str:
    followed = ""
    while members and (ready := wait([each.pipe for each in members], CAUSE_S if followed else None)):
        for member in [each for each in members if each.pipe in ready]:
            members.remove(member)
            try:
                member.receive(0)
            except LostAnotherError as error:
                followed = followed or str(error)
            except RankError as error:
                return str(error)
    return followed


def _end(
    members: list[MemberHandle],
    watchers: list[threading.Thread],
    folder: "tempfile.TemporaryDirectory[str]",
    all_threads: int,
) -> None:
    for member in members:
        member.tell(None)
    for member in members:
        member.wait()
    for watcher in watchers:
        watcher.join()
    for member in members:
        member.pipe.close()
    folder.cleanup()
    torch.set_num_threads(all_threads)
