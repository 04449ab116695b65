"""What is read again while the server runs: files of keys, and the certificate.

On SIGHUP all of them are; a file of keys also when it has changed, within `LOOK_S`. A certificate is two files, which
change one after the other: it waits for the signal. What cannot be read or used leaves in force what was, and is an
error in the log: a slip of the pen neither locks everybody out nor lets everybody in.
"""

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from miniserve.errors import MiniserveError

LOOK_S = 1.0

logger = logging.getLogger(__name__)


class Source(NamedTuple):
    """Something that can be read again.

    Attributes:
        name: for the log.
        read: does it; raises MiniserveError, and then has changed nothing.
        watched: a file at whose every change it is done; None: on the signal only.
    """

    name: str
    read: Callable[[], None]
    watched: Path | None = None


class Reloads:
    """Reads sources again. On one event loop."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = list(sources)
        self._seen = [_state(source.watched) for source in self._sources]

    async def run(self) -> None:
        """Wait for the signal and for changes, until cancelled."""
        loop = asyncio.get_running_loop()
        if hasattr(signal, "SIGHUP"):  # Windows has no such signal
            loop.add_signal_handler(signal.SIGHUP, self.read_all)
        try:
            while True:
                await asyncio.sleep(LOOK_S)
                self.look()
        finally:
            if hasattr(signal, "SIGHUP"):
                loop.remove_signal_handler(signal.SIGHUP)

    def read_all(self) -> None:
        """Read everything again."""
        self._seen = [_state(source.watched) for source in self._sources]  # before: a change meanwhile is seen later
        for source in self._sources:
            _read(source)

    def look(self) -> None:
        """Read again what has changed."""
        for at, source in enumerate(self._sources):
            state = _state(source.watched)
            if state != self._seen[at]:
                self._seen[at] = state
                _read(source)


def _read(source: Source) -> None:
    try:
        source.read()
    except MiniserveError as error:
        logger.error("not read again: what was in force stays", extra={"what": source.name, "reason": str(error)})
    else:
        logger.info("read again", extra={"what": source.name})


def _state(path: Path | None) -> tuple[int, ...] | None:
    """What differs when a file has changed; None: there is none, or none to be seen."""
    try:
        stat = path.stat() if path else None
    except OSError:
        return None
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) if stat else None
