"""`Engine`: the loop. Requests go in, `step` is called while there is work, tokens come out.

One step is: the scheduler says what to compute, the executor computes it, the scheduler takes note. Where the executor
allows it, the next step is scheduled and launched before the result of the last is waited for, so that the device has
work while the host thinks: `step` then returns what came of the one before. A step in flight whose every request has
ended meanwhile is waited for at once: nothing of it stays behind.

The engine adds names (a request is addressed by its id), times, metrics, and the promise that nothing leaks: whatever
ends a request, its blocks are back in the pool, and if the executor fails, the step's requests end with an error and
the others go on.

Single-threaded; the clock is passed in, so that simulated hardware runs the same loop in virtual time.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from miniserve.core.executor import Executor, InFlight, Step, StepResult
from miniserve.core.metrics import Metrics
from miniserve.core.request import FinishReason, Request
from miniserve.core.scheduler import Output, Scheduler
from miniserve.core.step_record import PartRecord, StepRecord
from miniserve.core.times import Times
from miniserve.errors import InvalidRequestError


class _Launched(NamedTuple):
    """A step on its way: when the scheduler began, how long it took, and how long the launch did."""

    step: Step
    in_flight: InFlight
    start_s: float
    schedule_s: float
    launch_s: float


class Engine:
    """Drives `executor` with what `scheduler` decides.

    Args:
        scheduler: requests and blocks.
        executor: computes steps.
        clock: the time in seconds; any origin.
        on_step: told of each step that computed something.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        clock: Callable[[], float] = time.monotonic,
        on_step: Callable[[StepRecord], None] | None = None,
    ) -> None:
        self.scheduler, self.executor = scheduler, executor
        self.metrics = Metrics()
        self.on_step = on_step
        self._clock = clock
        self._live: dict[str, Request] = {}
        self._launched: _Launched | None = None

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
            Exception: whatever the executor raised. The requests of that step have ended with an error by then; what
                came of another one that was in flight is said by the next call.
        """
        if not self.has_work:
            return []
        launched = self._launched = self._launched or self._launch()
        if launched is None:
            return []
        try:
            ahead = launched.in_flight.may_be_followed and self.scheduler.may_run_ahead
            self._launched = self._launch() if ahead else None
            return self._take_note(launched, self._wait(launched))
        finally:
            self._settle()

    def finish(self, request_id: str, reason: FinishReason = FinishReason.ABORT) -> bool:
        """End a request from outside: an abort, or a stop string in its text.

        False if there is none by that name (it may just have finished).
        """
        request = self._live.get(request_id)
        if request is None:
            return False
        self.scheduler.finish(request, reason)
        self._note_ends([Output(request, (), reason)], self._clock())
        self._settle()
        return True

    def _launch(self) -> _Launched | None:
        """The next step; None if there is nothing to compute now."""
        started = self._clock()
        step = self.scheduler.schedule()
        scheduled = self._clock()
        self._note_first_steps(step, scheduled)
        if not step.scheduled:
            return None
        try:
            in_flight = self.executor.launch(step)
        except BaseException as error:
            self._give_up(step, error)
            raise
        return _Launched(step, in_flight, started, scheduled - started, self._clock() - scheduled)

    def _wait(self, launched: _Launched) -> tuple[StepResult, float]:
        """The result, and how long it was waited for."""
        started = self._clock()
        try:
            result = launched.in_flight.result()
        except BaseException as error:
            self._give_up(launched.step, error)
            raise
        return result, self._clock() - started

    def _give_up(self, step: Step, error: BaseException) -> None:
        """KeyboardInterrupt is an error too: a half-computed step is worth nothing."""
        reason = FinishReason.ERROR if isinstance(error, Exception) else FinishReason.ABORT
        self._note_ends(self.scheduler.give_up(step, reason), self._clock())

    def _take_note(self, launched: _Launched, waited: tuple[StepResult, float]) -> list[Output]:
        step, (result, wait_s), computed = launched.step, waited, self._clock()
        outputs = self.scheduler.update(step, result.tokens)
        self._attach_logprobs(step, result)
        self._note_tokens(outputs, computed)
        self._note_ends(outputs, computed)
        self._record(launched, result, wait_s, self._clock() - computed)
        return outputs

    def _settle(self) -> None:
        """Wait for a step in flight that nobody lives to see the end of.

        What it computed is nobody's, and so is its failure: a device that is lost says so at the next launch.
        """
        if self._launched and not self._live:
            launched, self._launched = self._launched, None
            try:
                waited = self._wait(launched)
            except Exception:
                return
            self._take_note(launched, waited)

    def _note_first_steps(self, step: Step, now: float) -> None:
        for request in (part.request for part in step.scheduled):
            if request.times.scheduled_s is None:
                request.times.scheduled_s = now
                self.metrics.admitted(request)

    def _attach_logprobs(self, step: Step, result: StepResult) -> None:
        for index, several in result.logprobs.items():
            request = step.scheduled[index].request
            request.logprobs += several
            del request.logprobs[request.num_output_tokens - request.num_resumed :]  # of tokens that were dropped
        for index, logprobs in result.prompt_logprobs.items():
            request, start = step.scheduled[index][:2]
            request.prompt_logprobs = request.prompt_logprobs or [None]
            # By position: a prompt that is computed again after a preemption gives the same values again.
            request.prompt_logprobs[start + 1 : start + 1 + len(logprobs)] = logprobs

    def _note_tokens(self, outputs: list[Output], now: float) -> None:
        for request, tokens, _ in outputs:
            if tokens:
                request.times.tokens_s += [now] * len(tokens)
                self.metrics.tokens(request, len(tokens))

    def _note_ends(self, outputs: list[Output], now: float) -> None:
        for request, _, reason in outputs:
            if reason is not None:
                del self._live[request.request_id]
                request.times.finished_s = now
                self.metrics.ended(request, reason)

    def _record(self, launched: _Launched, result: StepResult, wait_s: float, after_s: float) -> None:
        metrics, scheduler, step = self.metrics, self.scheduler, launched.step
        schedule_s, execute_s = launched.schedule_s + after_s, launched.launch_s + wait_s
        metrics.num_steps += 1
        metrics.num_computed_tokens += step.num_tokens
        metrics.schedule_s += schedule_s
        metrics.execute_s += execute_s
        token_s = (schedule_s + execute_s) / step.num_tokens
        for part in step.scheduled:
            part.request.times.spent_s += token_s * part.num_tokens
        metrics.batch_size.observe(len(step.scheduled))
        for name, seconds in result.seconds.items():
            metrics.seconds[name] = metrics.seconds.get(name, 0.0) + seconds
        parts = [
            PartRecord(
                part.request.request_id, part.start, part.num_tokens, bool(tokens),
                len(part.draft), max(len(tokens) - 1, 0),
            )
            for part, tokens in zip(step.scheduled, result.tokens, strict=True)
        ]  # fmt: skip
        for record in parts:
            metrics.verified(record.num_drafted, record.num_accepted)
        if self.on_step:
            self.on_step(
                StepRecord(
                    index=metrics.num_steps - 1,
                    start_s=launched.start_s,
                    schedule_s=schedule_s,
                    execute_s=execute_s,
                    seconds=dict(result.seconds),
                    parts=tuple(parts),
                    preempted=tuple(request.request_id for request in step.preempted),
                    num_running=len(scheduler.running),
                    num_waiting=scheduler.num_waiting,
                    num_free_blocks=scheduler.pool.num_free,
                )
            )
