"""`EngineProcess`: a process with an engine in it, and the pipe to it.

Messages leave through a thread and come in through another, so that neither a long prompt nor an engine that takes
nothing holds up the event loop. One that hangs never closes its pipe: it is asked for a sign of life now and then, and
killed when it has been silent for too long, which its owner hears of as of any other death.
What messages mean is the owner's business.
"""

import asyncio
import contextlib
import logging
import multiprocessing
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from queue import SimpleQueue

from miniserve.server.messages import Ask, FromEngine, ToEngine
from miniserve.server.worker import Opener, run_engine

ASKS = 4  # unanswered before it is killed

logger = logging.getLogger(__name__)


class EngineProcess:
    """Made on an event loop, on which its callbacks are called. `start` it, once.

    Args:
        opener: makes the engine, in that process; see `run_engine`.
        on_message: called with what comes.
        on_lost: called with this object when the pipe has closed: the process is dead or dying.
    """

    def __init__(
        self, opener: Opener, on_message: Callable[[FromEngine], None], on_lost: Callable[["EngineProcess"], None]
    ) -> None:
        self._on_message, self._on_lost = on_message, on_lost
        self._loop = asyncio.get_running_loop()
        self._heard = False
        self._outbox: SimpleQueue[ToEngine | None] = SimpleQueue()
        self._watcher: asyncio.Task[None] | None = None
        context = multiprocessing.get_context("spawn")
        self._connection, self._theirs = context.Pipe()
        self._process = context.Process(target=run_engine, args=(self._theirs, opener), name="miniserve-engine")

    @property
    def pid(self) -> int | None:
        """The process's; None before `start`."""
        return self._process.pid

    async def start(self) -> None:
        """Start the process; what it says comes to `on_message`."""
        await asyncio.to_thread(self._process.start)
        self._theirs.close()  # or the end of the process would not close the pipe
        for work in (self._read, self._write):
            threading.Thread(target=work, args=(self._connection,), daemon=True).start()

    def send(self, message: ToEngine) -> None:
        """Have a message sent; if the process has died, it goes nowhere."""
        self._outbox.put(message)

    def watch(self, silence_s: float) -> None:
        """From now on, kill the process when nothing has come from it for so long: its longest step, and some more."""
        self._watcher = self._loop.create_task(self._watch(silence_s))

    async def end(self, timeout_s: float) -> None:
        """Tell it to end, and see to it after a while; `on_lost` may be called still."""
        self._outbox.put(None)
        await asyncio.to_thread(self._process.join, timeout_s)
        if self._process.is_alive():
            self._process.kill()
        await self.join()

    async def join(self) -> None:
        """Wait until it has ended."""
        await asyncio.to_thread(self._process.join)

    async def _watch(self, silence_s: float) -> None:
        """Counted in questions, not by the clock: this process may have been stopped itself for a while."""
        unanswered = 0
        while unanswered < ASKS:
            self._heard = False
            self.send(Ask())
            await asyncio.sleep(silence_s / ASKS)
            unanswered = 0 if self._heard else unanswered + 1
        logger.error("the engine hangs", extra={"engine_pid": self.pid, "silent_s": silence_s})
        self._process.kill()

    def _handle(self, message: FromEngine) -> None:
        self._heard = True
        self._on_message(message)

    def _lost(self) -> None:
        if self._watcher:
            self._watcher.cancel()
        self._outbox.put(None)  # for the writing thread
        self._on_lost(self)

    def _read(self, connection: Connection) -> None:
        """The reading thread."""
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            try:
                while True:
                    self._loop.call_soon_threadsafe(self._handle, connection.recv())
            except (EOFError, OSError):
                self._loop.call_soon_threadsafe(self._lost)

    def _write(self, connection: Connection) -> None:
        """The writing thread. It ends when it has told the engine to, or the engine has died."""
        with contextlib.suppress(OSError):
            message: ToEngine | None = Ask()
            while message is not None:
                message = self._outbox.get()
                connection.send(message)
