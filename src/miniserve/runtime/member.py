"""A process of a `Crew`: it gets a job through a pipe, does it, and says over the pipe what there is to say.

The pipe is also its lifeline: when the process that started it is gone, however it went, reading from the pipe ends,
and with it this process. Should it fail, its traceback is the last that it says.
"""

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import NamedTuple

from miniserve.errors import RankError


class Failed(NamedTuple):
    """A member's last words; whether all that happened to it is that another was gone."""

    traceback: str
    lost_another: bool


def run(serve: Callable[[Connection], None]) -> None:
    """Serve on the pipe whose file descriptor is this program's argument, to the end of the process."""
    pipe = Connection(int(sys.argv[1]))
    try:
        serve(pipe)
    except EOFError:
        pass  # who started it is gone
    except Exception as error:
        with suppress(OSError):
            pipe.send(Failed(traceback.format_exc(), isinstance(error, RankError)))
        sys.stderr.flush()
        os._exit(1)  # at once: a wait for others, which may never end, must not hold it
