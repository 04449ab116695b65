"""The engine's process: takes submissions from the server's pipe, steps, and sends back what came.

It computes and nothing else: HTTP, JSON and slow readers are the other process's, so that none of them holds up a step.
A thread empties the pipe, so that the server never waits for a step to write into it; requests change between steps
only. Another compiles grammars, one by one, while steps go on. When the pipe closes, because the server ended in
whatever way, this process ends too.
An exception of the executor ends the process: what state the device is in is not known then. The server starts another.
"""

import contextlib
import logging
import re
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from miniserve.core.block_pool import BlockEvent
from miniserve.core.grammar import Grammar
from miniserve.errors import InvalidRequestError, MiniserveError
from miniserve.server.departures import Departures
from miniserve.server.logs import set_up_logs
from miniserve.server.messages import (
    Abort,
    Accepted,
    Ask,
    Cached,
    Deleted,
    DeleteKV,
    Facts,
    Failed,
    Follow,
    FromEngine,
    Piece,
    Ready,
    Refused,
    Report,
    Stepped,
    Submit,
    ToEngine,
    Watch,
)
from miniserve.server.view.recorder import Recorder

if TYPE_CHECKING:
    from miniserve.llm import LLM
    from miniserve.runtime.generation import Delta, Generation

Opener = Callable[[], "LLM"]

logger = logging.getLogger(__name__)


class _Compiled(NamedTuple):
    """A submission whose grammar has been compiled, or cannot be."""

    submit: Submit
    error: Exception | None


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
        self._inbox: SimpleQueue[ToEngine | _Compiled | Deleted | None] = SimpleQueue()
        self._compiler = ThreadPoolExecutor(1, "grammars")
        self._compiling: set[int] = set()
        self._live: dict[int, list[Generation]] = {}
        self._recorder = Recorder(llm.engine, self._send, llm.moves, lambda: llm.expert_tokens)
        self._owner: dict[str, tuple[int, int]] = {}  # a generation's id: its key, and the index of its first choice
        self._departures = Departures(self._text, llm.moves)
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
            pieces = [self._piece(delta) for delta in deltas]
            for delta in deltas:
                self._departures.after(delta)
            if self._cached:  # first: whoever hears of a token may send what shares its prompt
                self._send(Cached(self._cached))
                self._cached = []
            if pieces := pieces + self._departures.pieces():
                self._send(Stepped(pieces))
            for generation in {delta.generation for delta in deltas if delta.generation.finished}:
                self._forget(generation)
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
                self._submit(message)
            elif isinstance(message, _Compiled):
                self._go_on(message)
            elif isinstance(message, Abort):
                self._abort(message)
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

    def _next_message(self) -> "ToEngine | _Compiled | Deleted | None":
        """Wait for one. Whoever watches is told meanwhile how the last step left things."""
        if (due_in_s := self._recorder.due_in_s) is not None:
            with contextlib.suppress(Empty):
                return self._inbox.get(timeout=due_in_s)
            self._recorder.send()
        return self._inbox.get()

    def _submit(self, submit: Submit) -> None:
        grammar = submit.params.grammar
        if grammar is None or self._text.grammars.has(grammar, submit.cache_salt):
            self._begin(submit)
        else:
            self._compiling.add(submit.key)
            self._compiler.submit(self._compile, submit, grammar)

    def _compile(self, submit: Submit, grammar: Grammar) -> None:
        """In the compiler's thread."""
        error: Exception | None = None
        try:
            self._text.grammars.compile(grammar, submit.cache_salt)
        except Exception as failure:
            error = failure
        self._inbox.put(_Compiled(submit, error))

    def _go_on(self, compiled: _Compiled) -> None:
        submit, error = compiled
        if submit.key not in self._compiling:
            return  # aborted meanwhile
        self._compiling.remove(submit.key)
        if isinstance(error, InvalidRequestError):
            self._send(Refused(submit.key, str(error)))
        elif error:
            raise error
        else:
            self._begin(submit)

    def _begin(self, submit: Submit) -> None:
        try:
            made = [
                self._text.make(
                    prompt,
                    submit.params,
                    request_id=_request_id(submit, index),
                    cache_salt=submit.cache_salt,
                    prior=submit.prior,
                    offer=submit.offer,
                )
                for index, prompt in enumerate(submit.prompts)
            ]
            if submit.offer and self._llm.moves:
                self._llm.moves.check(submit.offer)
        except InvalidRequestError as error:
            # Without our name for the request, which says nothing to whoever sent it.
            message = re.sub(rf"^(request )?{submit.key}\.\d[^:]*: ", "", str(error))
            self._send(Refused(submit.key, message))
            return
        for index, generation in enumerate(made):
            self._text.add(generation)
            self._owner[generation.request_id] = submit.key, index * submit.params.n
            if submit.moves:
                self._departures.expect(generation.request_id, submit.key)
        self._live[submit.key] = made
        self._send(Accepted(submit.key))

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

    def _abort(self, abort: Abort) -> None:
        self._compiling.discard(abort.key)
        self._departures.withdraw(_request_id(abort, 0))
        for generation in self._live.pop(abort.key, ()):
            self._text.abort(generation.request_id)
            self._owner.pop(generation.request_id, None)

    def _piece(self, delta: "Delta") -> tuple[int, Piece]:
        generation, choice, text, tokens = delta
        request, params = choice.request, generation.params
        key, first = self._owner[generation.request_id]
        begins = bool(tokens) and request.num_output_tokens == len(tokens)
        return key, Piece(
            first + choice.index,
            text,
            list(tokens),
            request.logprobs[len(request.logprobs) - len(tokens) :] if params.logprobs is not None else None,
            choice.finish_reason.value if choice.finish_reason else None,
            choice.stop_reason,
            request.num_reused,
            list(request.prompt_logprobs) if begins and params.prompt_logprobs is not None else None,
            spent_s=request.times.newly_spent_s(),
        )

    def _forget(self, generation: "Generation") -> None:
        key, _ = self._owner.pop(generation.request_id)
        if all(each.finished for each in self._live.get(key, ())):
            self._live.pop(key, None)  # gone already if two of its prompts ended in this step

    def _report(self) -> None:
        engine = self._llm.engine
        scheduler = engine.scheduler
        moves = self._llm.moves.counts if self._llm.moves else None
        counts = len(scheduler.running), scheduler.num_waiting, scheduler.pool.num_free
        self._send(Report(engine.metrics, *counts, moves, self._llm.expert_tokens))


def _request_id(of: Submit | Abort, index: int) -> str:
    """Of a submission's prompt: unique by its key, and told to those who watch as `name_of` takes it."""
    return f"{of.key}.{index} {of.name}".rstrip()
