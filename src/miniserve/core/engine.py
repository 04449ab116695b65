"""`Engine`: the loop. Requests go in, `step` is called while there is work, tokens come out.

One step is: the scheduler says what to compute, the executor computes it, the scheduler takes note. The engine adds
names (a request is addressed by its id), times, and the promise that nothing leaks: whatever ends a request, its blocks
are back in the pool, and if the executor fails, the step's requests end with an error and the others go on.

Single-threaded; the clock is passed in, so that simulated hardware runs the same loop in virtual time.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from miniserve.core.executor import Executor
from miniserve.core.request import FinishReason, Request, Times
from miniserve.core.scheduler import Scheduler
from miniserve.errors import InvalidRequestError


class Output(NamedTuple):
    """What a step did for one request: a new token, its end, or both."""

    request: Request
    token: int | None
    finish_reason: FinishReason | None


class Engine:
    """Drives `executor` with what `scheduler` decides.

    Args:
        scheduler: requests and blocks.
        executor: computes steps.
        clock: the time in seconds; any origin.
    """

    def __init__(self, scheduler: Scheduler, executor: Executor, clock: Callable[[], float] = time.monotonic) -> None:
        self.scheduler, self._executor, self._clock = scheduler, executor, clock
        self._live: dict[str, Request] = {}

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return self.scheduler.has_work

    def add_request(self, request: Request) -> None:
        """Queue a request.

        Raises:
            InvalidRequestError: its id is in use, or it can never fit (see `Scheduler.add`).
        """
        if request.request_id in self._live:
            raise InvalidRequestError(f"request {request.request_id} is already running: ids must be unique")
        self.scheduler.add(request)
        self._live[request.request_id] = request
        request.times = Times(queued_s=self._clock())

    def step(self) -> list[Output]:
        """Compute one step and say what came of it. Without work it does nothing.

        Raises:
            Exception: whatever the executor raised. The requests of that step have ended with an error by then.
        """
        if not self.has_work:
            return []
        step = self.scheduler.schedule()
        now = self._clock()
        for part in step.scheduled:
            if part.request.times.scheduled_s is None:
                part.request.times.scheduled_s = now
        before = {part.request.request_id: len(part.request.token_ids) for part in step.scheduled}
        try:
            tokens = self._executor.execute(step)
        except Exception:
            for request in self.scheduler.give_up(step):
                self._forget(request)
            raise
        finished = self.scheduler.update(step, tokens)
        now = self._clock()
        outputs = []
        for part in step.scheduled:
            request = part.request
            grew = len(request.token_ids) > before[request.request_id]
            if grew:
                request.times.tokens_s.append(now)
            if grew or request.finish_reason:
                outputs.append(Output(request, request.token_ids[-1] if grew else None, request.finish_reason))
        for request in finished:
            self._forget(request)
        return outputs

    def abort(self, request_id: str) -> bool:
        """End a request from outside; False if there is none by that name (it may just have finished)."""
        request = self._live.get(request_id)
        if request is None:
            return False
        self.scheduler.finish(request, FinishReason.ABORT)
        self._forget(request)
        return True

    def _forget(self, request: Request) -> None:
        self._live.pop(request.request_id, None)
