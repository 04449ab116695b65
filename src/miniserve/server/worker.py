"""The engine's process: takes submissions from the server's pipe, steps, and sends back what came.

It computes and nothing else: HTTP, JSON and slow readers are the other process's, so that none of them holds up a step.
A thread empties the pipe, so that the server never waits for a step to write into it; requests change between steps
only (`Submissions`). When the pipe closes, because the server ended in
whatever way, this process ends too.
An exception of the executor ends the process: what state the device is in is not known then. The server starts another.
"""

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from miniserve.core.block_pool import BlockEvent
from miniserve.errors import MiniserveError
from miniserve.server.logs import set_up_logs
from miniserve.server.messages import (
    Abort,
    Ask,
    Cached,
    Deleted,
    DeleteKV,
    Facts,
    Failed,
    Follow,
    FromEngine,
    Ready,
    Report,
    Stepped,
    Submit,
    ToEngine,
    Watch,
)
from miniserve.server.submissions import Compiled, Submissions
from miniserve.server.view.recorder import Recorder

if TYPE_CHECKING:
    from miniserve.llm import LLM

Opener = Callable[[], "LLM"]

logger = logging.getLogger(__name__)


def run_engine(connection: Connection, opener: Opener) -> None:
    """The process's main function.

    Args:
        connection: this end of the pipe.
        opener: makes the engine here. It is pickled, so it is a function of a module, or a `partial` of one.
    """
    # A signal to the process group (Ctrl-C, a service manager) is for the server, which lets requests finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    set_up_logs("warning")
    try:
        with opener() as llm:
            Worker(connection, llm).run()
    except MiniserveError as error:
        connection.send(Failed(str(error), error.exit_code))
    except BrokenPipeError:
        pass  # the server is gone
    except Exception:
        logger.exception("the engine ends with an error")  # not as Python would: the message may quote a prompt
        sys.exit(1)


class Worker:
    """Drives one engine for the process at the other end of the pipe."""

    def __init__(self, connection: Connection, llm: "LLM") -> None:
        self._connection, self._llm, self._text = connection, llm, llm.text_engine
        self._inbox: SimpleQueue[ToEngine | Compiled | Deleted | None] = SimpleQueue()
        self._submissions = Submissions(self._text, llm.moves, self._send, self._inbox.put)
        self._recorder = Recorder(llm.engine, self._send, llm.moves, lambda: llm.expert_tokens)
        self._cached: list[BlockEvent] = []  # since the last message

    def run(self) -> None:
        """Serve until the pipe closes."""
        settings = self._llm.settings
        facts = Facts(
            str(settings), settings.max_model_len, settings.max_num_seqs, settings.max_num_batched_tokens,
            settings.num_blocks, settings.block_size, settings.prefix_caching, self._text.model_key,
        )  # fmt: skip
        self._send(Ready(facts, self._llm.tokenizer))
        threading.Thread(target=self._receive, daemon=True).start()
        while self._take_messages():
            deltas = self._text.step()
            pieces = self._submissions.pieces(deltas)
            if self._cached:  # first: whoever hears of a token may send what shares its prompt
                self._send(Cached(self._cached))
                self._cached = []
            if pieces:
                self._send(Stepped(pieces))
            self._recorder.after_step(deltas)

    def _send(self, message: FromEngine) -> None:
        self._connection.send(message)

    def _receive(self) -> None:
        try:
            while True:
                self._inbox.put(self._connection.recv())
        except (EOFError, OSError):
            self._inbox.put(None)

    def _take_messages(self) -> bool:
        """Handle what has come, waiting for something if there is nothing to compute; False once the pipe is closed."""
        while not self._inbox.empty() or not self._text.has_work:
            message = self._next_message()
            if message is None:
                return False
            if isinstance(message, Submit):
                self._submissions.submit(message)
            elif isinstance(message, Compiled):
                self._submissions.go_on(message)
            elif isinstance(message, Abort):
                self._submissions.abort(message)
            elif isinstance(message, Ask):
                self._report()
            elif isinstance(message, Watch):
                self._recorder.switch(message.on)
            elif isinstance(message, Follow):
                self._follow()
            elif isinstance(message, DeleteKV):
                self._delete_kv(message)
            elif isinstance(message, Deleted):
                self._send(message)
            self._recorder.changed()
        return True

    def _next_message(self) -> ToEngine | Compiled | Deleted | None:
        """Wait for one. Whoever watches is told meanwhile how the last step left things."""
        if (due_in_s := self._recorder.due_in_s) is not None:
            with contextlib.suppress(Empty):
                return self._inbox.get(timeout=due_in_s)
            self._recorder.send()
        return self._inbox.get()

    def _follow(self) -> None:
        pool = self._llm.engine.scheduler.pool
        assert not pool.cached_blocks, "it is asked for before anything is submitted"
        self._send(Cached([], from_nothing=True))
        pool.on_event = self._note_event

    def _delete_kv(self, order: DeleteKV) -> None:
        def tell(done: Future[dict[str, int]]) -> None:  # in the tiers' thread: only this one writes to the pipe
            if done.cancelled():
                return
            error = done.exception()
            self._inbox.put(Deleted(order.key, {} if error else done.result(), str(error or "")))

        self._llm.delete_kv(order.cache_salt).add_done_callback(tell)

    def _note_event(self, event: BlockEvent) -> None:
        self._cached.append(event)

    def _report(self) -> None:
        engine = self._llm.engine
        scheduler = engine.scheduler
        moves = self._llm.moves.counts if self._llm.moves else None
        counts = len(scheduler.running), scheduler.num_waiting, scheduler.pool.num_free
        self._send(Report(engine.metrics, *counts, moves, self._llm.expert_tokens))
