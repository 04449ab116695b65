"""`MemberHandle`: one process of a `Crew`, as the process sees it that started it.

It is started as a program of its own: not forked, because a fork would copy locks that torch's threads hold, and not by
`multiprocessing`, which would run the caller's script again. It has a session of its own, so that Ctrl-C in a terminal
reaches the caller alone, who decides what it means. What it runs is in `member`.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Pipe
from typing import Any

from miniserve.errors import RankError
from miniserve.runtime.member import Failed

NOTICE_S = 5.0  # after a failure, for what is known of a process that is gone
END_S = 5.0  # to end when told, before it is killed


class LostAnotherError(RankError):
    """Of a process that failed because another was gone."""


class MemberHandle:
    """A process and the pipe to it.

    Args:
        rank: its name.
        module: whose `main` is its program, which is to call `member.run`; the first that it is told is its job.
    """

    def __init__(self, rank: int, module: str) -> None:
        self.pipe, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", program(module), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a library prints there must not get into this process's output
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._name = f"rank {rank} (process {self._process.pid})"

    def tell(self, what: Any) -> None:
        """Send; if it has ended already, the answer that does not come says so."""
        with suppress(OSError):
            self.pipe.send(what)

    def receive(self, timeout_s: float) -> Any:
        """The next thing that it says.

        Raises:
            RankError: it says that it failed, or has ended, or says nothing. `LostAnotherError`: because another has.
        """
        if not self.pipe.poll(timeout_s):
            raise RankError(f"{self._name} has said nothing for {timeout_s:g} s")
        try:
            said = self.pipe.recv()
        except (EOFError, OSError):
            raise RankError(f"{self._name} {self._ending()}") from None
        if isinstance(said, Failed):
            kind = LostAnotherError if said.lost_another else RankError
            raise kind(f"{self._name} failed:\n{said.traceback}")
        return said

    def kill(self) -> None:
        """End it without asking."""
        self._process.kill()

    def wait(self) -> None:
        """Until it has ended, as it was told to; not for ever."""
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ending(self) -> str:
        """How it ended."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(NOTICE_S)
        code = self._process.returncode
        if code is None:
            return "has closed its pipe"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"


def program(module: str) -> str:
    """What a member runs."""
    return f"from {module} import main; main()"
