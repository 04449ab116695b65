"""`EngineClient`: the engine's process as the server's coroutines see it.

It starts the process, hands it submissions, and starts another one when it dies; the requests of the dead one end with
an error. What is open in it, and who is told what comes, `Pending` knows. `submit` gives a `Reply`, whose pieces are
read at the reader's own pace: what comes meanwhile is joined to one piece a choice, so that a slow reader costs no more
memory than its output.

Invariants: a reply that is closed, by whatever way its reader ended, is aborted in the engine at once and forgotten
here; no more than `max_num_seqs + max_waiting` outputs are in the engine.
Single-threaded, on one event loop.
"""

import asyncio
import contextlib
import gc
import logging
from collections.abc import Callable, Sequence

from miniserve.core.offer import Offer
from miniserve.core.sampling_params import SamplingParams
from miniserve.errors import MiniserveError
from miniserve.model.tokenizer.tokenizer import Tokenizer
from miniserve.server.backend import EngineReport, check_room
from miniserve.server.engine_process import EngineProcess
from miniserve.server.errors import APIError, EngineDiedError, unavailable
from miniserve.server.messages import (
    Abort,
    Ask,
    Cached,
    DeleteKV,
    Facts,
    Failed,
    Follow,
    FromEngine,
    Ready,
    Report,
    Submit,
    ToEngine,
    Watch,
)
from miniserve.server.pending import Pending
from miniserve.server.reply import Reply
from miniserve.server.view.records import EngineState, Update
from miniserve.server.worker import Opener

LONGEST_PAUSE_S = 30.0  # between two attempts to start the engine again
REPORT_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 10.0

logger = logging.getLogger(__name__)


class EngineClient:
    """One engine process and what is open in it.

    Args:
        opener: makes the engine, in that process; see `run_engine`.
        max_waiting: how many outputs may wait beyond those the engine computes at once.
        silence_s: an engine from which nothing has come for so long is taken for dead and killed.

    Attributes:
        ready: whether requests are taken.
        draining: set it to take no more.
        facts, tokenizer: of the engine, once it has been ready.
        on_update: takes what the engine sends while it is watched.
        on_cached: takes what the engine says of its KV blocks, if it is set before the start.
    """

    def __init__(self, opener: Opener, *, max_waiting: int, silence_s: float) -> None:
        self._opener, self._max_waiting, self._silence_s = opener, max_waiting, silence_s
        self.draining = False
        self.facts: Facts
        self.tokenizer: Tokenizer
        self.num_restarts = 0
        self._last_report: Report | None = None
        self.on_update: Callable[[Update], None] = lambda _: None
        self.on_cached: Callable[[Cached], None] | None = None
        self._watched = False
        self._running = False
        self._pending = Pending()
        self._process: EngineProcess | None = None
        self._started: asyncio.Future[None]
        self._restart: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self._running and not self.draining

    def check_ready(self) -> None:
        """Raise an APIError of 503 unless requests are taken."""
        if not self.ready:
            raise unavailable("the server is shutting down" if self.draining else "the engine is starting")

    @property
    def pid(self) -> int | None:
        """The engine's process."""
        return self._process.pid if self._process else None

    @property
    def num_open(self) -> int:
        """Outputs that have not ended."""
        return self._pending.num_open

    @property
    def states(self) -> list[EngineState]:
        """Of `Backend`: it is the only one."""
        return [EngineState("", self.ready, self.num_restarts)]

    async def start(self) -> None:
        """Start the process and wait until its model is loaded.

        Raises:
            MiniserveError: it cannot be loaded, or the process died while it loaded.
        """
        self._started = asyncio.get_running_loop().create_future()
        self._process = EngineProcess(self._opener, self._handle, self._lost)
        await self._process.start()
        await self._started
        self._process.watch(self._silence_s)
        self._running = True
        if self._watched:
            self._send(Watch(True))
        if self.on_cached:
            self._send(Follow())

    async def stop(self) -> None:
        """End the process; what is still open fails."""
        was_running, self._running, self.draining = self._running, False, True
        if self._restart:
            self._restart.cancel()
        self.fail_all(unavailable("the server is shutting down"))
        process, self._process = self._process, None
        if process:
            await process.end(STOP_TIMEOUT_S if was_running else 0)

    async def submit(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        cache_salt: str = "",
        moves: bool = False,
        prior: Sequence[int] = (),
        offer: Offer | None = None,
        name: str = "",
    ) -> Reply:
        """Have prompts continued; returns once the engine has accepted them.

        Args:
            prompts: token ids.
            params: for each of them.
            cache_salt, moves, prior, offer, name: see `Submit`. What has moved stands until the reply is closed.

        Raises:
            APIError: 400 if they are too many at any time, 429 if too many wait, 503 if the engine is not there.
            InvalidRequestError: the engine refuses them.
        """
        self.check_ready()
        choices = check_room(len(prompts), params.n, self.num_open, self.facts.max_num_seqs + self._max_waiting)
        reply = self._pending.open(choices, lambda reply: self._forget(reply, name))
        try:
            several = [list(prompt) for prompt in prompts]
            self._send(Submit(reply.key, several, params, cache_salt, moves, prior, offer, name))
            await reply.accepted
        except BaseException:
            reply.close()
            raise
        return reply

    async def reports(self) -> list[EngineReport]:
        """How it is: its counts as of its next step's end; the last known ones if it does not answer."""
        report = self._last_report
        if self._running:
            answer = self._pending.report()
            self._send(Ask())
            with contextlib.suppress(TimeoutError, APIError):
                report = await asyncio.wait_for(answer, REPORT_TIMEOUT_S)
        return [EngineReport("", self.ready, self.num_restarts, self.facts.num_blocks, report)]

    async def delete_kv(self, cache_salt: str) -> dict[str, int]:
        """Have the engine forget a tenant's KV; see `LLM.delete_kv`.

        Raises:
            APIError: 503, the engine is not there, or has died; 500, files could not be deleted.
        """
        if not self._running:
            raise unavailable("the engine is not there: order it again when it is")
        with self._pending.deletion() as (key, deleted):
            self._send(DeleteKV(key, cache_salt))
            return await deleted

    def watch(self, on: bool) -> None:
        """Have the engine send updates to `on_update`, the next one, too, should this one die; or no more."""
        self._watched = on
        if self._running:
            self._send(Watch(on))

    def fail_all(self, error: APIError) -> None:
        """End everything that is open with an error."""
        self._pending.fail_all(error)

    def _send(self, message: ToEngine) -> None:
        assert self._process is not None, "there is a process while the engine runs"
        self._process.send(message)

    def _forget(self, reply: Reply, name: str) -> None:
        """It is closed."""
        if (reply.num_open or reply.moved) and self._running:
            self._send(Abort(reply.key, name))

    def _handle(self, message: FromEngine) -> None:
        match message:
            case Ready(facts, tokenizer):
                self.facts, self.tokenizer = facts, tokenizer
                self._started.set_result(None)
            case Failed(reason) if self._started.done():  # its process ends, which `_lost` is told
                logger.error("the engine failed", extra={"engine_pid": self.pid, "reason": reason})
            case Failed(reason, exit_code):
                failure = MiniserveError(reason)
                failure.exit_code = exit_code
                self._started.set_exception(failure)
            case Update():
                self.on_update(message)
            case Cached():
                if self.on_cached:
                    self.on_cached(message)
            case _:
                if isinstance(message, Report):
                    self._last_report = message
                self._pending.take(message)

    def _lost(self, process: EngineProcess) -> None:
        if process is not self._process:  # ended by `stop`
            return
        was_running, self._running = self._running, False
        self.fail_all(EngineDiedError())
        if not self._started.done():
            self._started.set_exception(MiniserveError("the engine's process died while it loaded the model"))
        if was_running:
            logger.error("the engine died", extra={"engine_pid": self.pid})
            self._restart = asyncio.get_running_loop().create_task(self._start_again())

    async def _start_again(self) -> None:
        pause = 1.0
        while True:
            if self._process:
                await self._process.join()
            self.num_restarts += 1
            try:
                await self.start()
            except MiniserveError as error:
                logger.exception("the engine could not be started again", extra={"reason": str(error)})
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            else:
                gc.collect()  # the dead process's objects, pipe and tokenizer among them, refer to each other
                logger.warning("the engine is ready again", extra={"engine_pid": self.pid})
                return
