"""`Recorder`: notes what the engine does while somebody watches, and nothing at all otherwise.

It runs between the engine's steps and must not slow them. It sends at most ten updates a second, and fewer if they are
dear: one that took t is followed by none for 200 t, so that whatever the number of blocks and requests, updates take
half a percent of the time. t is the thread's CPU time: that others were given the core is no reason to send less.
Between updates it keeps no more than the last steps and two sketches.
"""

import math
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from miniserve.core.engine import Engine
from miniserve.core.request import Request
from miniserve.core.step_record import StepRecord
from miniserve.server.view.records import Holder, Part, ShownStep, TierState, Totals, Update

if TYPE_CHECKING:
    from miniserve.fleet.moves import Moves
    from miniserve.runtime.generation import Delta

INTERVAL_S = 0.1
LARGEST_SHARE = 1 / 200
MAX_STEPS = 8  # of an update: more than 80 columns a second no eye can follow


class Recorder:
    """Watches one engine.

    Args:
        engine: its `on_step` is this recorder's while it is on.
        send: takes the updates.
        moves: by which requests come and go, if they do.
        experts: asks how many tokens each expert got, as `LLM.expert_tokens` says it.
        clock: the engine's, in seconds.
        effort: the CPU time of this thread, in seconds.
    """

    def __init__(
        self,
        engine: Engine,
        send: Callable[[Update], None],
        moves: "Moves | None" = None,
        experts: Callable[[], list[list[int]] | None] = lambda: None,
        *,
        clock: Callable[[], float] = time.monotonic,
        effort: Callable[[], float] = time.thread_time,
    ) -> None:
        self._engine, self._send, self._moves, self._clock, self._effort = engine, send, moves, clock, effort
        self._experts = experts
        self._on = self._is_due = False
        self._reset()

    def _reset(self) -> None:
        self._steps: deque[StepRecord] = deque(maxlen=MAX_STEPS)
        self._text_s: dict[int, float] = {}  # after a step, by its index
        self._ttft: Counter[int] = Counter()
        self._itl: Counter[int] = Counter()
        self._began_s = self._next_s = self._stepped_s = self._clock()
        self._cost_s = 0.0

    def switch(self, on: bool) -> None:
        """Begin to record, with an update of how things are, or end."""
        if on is not self._on:
            self._reset()
        self._on = self._is_due = on
        self._engine.on_step = self._note_step if on else None

    @property
    def due_in_s(self) -> float | None:
        """When there is something to send, in seconds from now; None: nothing new, or nobody watches."""
        return max(0.0, self._next_s - self._clock()) if self._is_due else None

    def changed(self) -> None:
        """Requests came or went outside a step."""
        self._is_due = self._on

    def after_step(self, deltas: Sequence["Delta"]) -> None:
        """A step's outputs are on their way.

        Args:
            deltas: what came of it.
        """
        if not self._on:
            return
        now, spent_s = self._clock(), self._effort()
        if self._steps:
            self._text_s[self._steps[-1].index] = now - self._stepped_s
        self._note_latencies(deltas)
        self._is_due = True
        self._cost_s += self._effort() - spent_s
        if now >= self._next_s:
            self.send()

    def send(self) -> None:
        """Send an update now."""
        now, spent_s = self._clock(), self._effort()
        self._send(self._update(now))
        self._steps.clear()
        self._text_s.clear()
        self._ttft, self._itl = Counter(), Counter()
        self._is_due = False
        took_s = self._effort() - spent_s
        self._cost_s += took_s
        self._next_s = now + max(INTERVAL_S, took_s / LARGEST_SHARE)

    def _note_step(self, record: StepRecord) -> None:
        self._steps.append(record)
        self._stepped_s = self._clock()

    def _note_latencies(self, deltas: Sequence["Delta"]) -> None:
        gaps: list[float] = []
        for _, choice, _, tokens in deltas:
            times = choice.request.times
            moments: Sequence[float] = times.tokens_s[-len(tokens) - 1 :] if tokens else ()
            if len(moments) == 2 and len(tokens) == 1:  # nearly all of them
                gaps.append(moments[1] - moments[0])
                continue
            if tokens and len(moments) == len(tokens) and not choice.request.num_resumed:
                self._ttft[bucket(moments[0] - times.queued_s)] += 1
            gaps += [after - before for before, after in pairwise(moments)]
        for gap, number in Counter(gaps).items():  # those of requests that decode together are equal
            self._itl[bucket(gap)] += number

    def _update(self, now: float) -> Update:
        scheduler, metrics = self._engine.scheduler, self._engine.metrics
        return Update(
            at_s=now,
            requests=[_holder(request) for request in (*scheduler.running, *scheduler.loading)],
            waiting=scheduler.num_waiting,
            free=scheduler.pool.num_free,
            cached=runs_of_set(scheduler.pool.cached_blocks, scheduler.pool.num_blocks),
            totals=Totals(
                steps=metrics.num_steps,
                computed=metrics.num_computed_tokens,
                output=metrics.num_output_tokens,
                prompt=metrics.num_prompt_tokens,
                cached=metrics.num_cached_tokens,
                drafted=sum(metrics.drafted),
                accepted=sum(metrics.accepted),
                finished=sum(metrics.finished.values()),
            ),
            steps=[_shown(record, self._text_s.get(record.index, 0.0)) for record in self._steps],
            ttft=dict(self._ttft),
            itl=dict(self._itl),
            cost=self._cost_s / max(now - self._began_s, INTERVAL_S),
            tiers=[
                TierState(name, tier.capacity_bytes, tier.used_bytes, tier.hits, tier.misses)
                for name, tier in metrics.tiers.items()
            ],
            moves=self._moves.counts if self._moves else None,
            experts=self._experts() or [],
        )


def _shown(record: StepRecord, text_s: float) -> ShownStep:
    parts = [Part(name_of(p.request_id), p.num_tokens, p.num_drafted, p.num_accepted) for p in record.parts]
    preempted = [name_of(request_id) for request_id in record.preempted]
    return ShownStep(record.index, record.start_s, {**split(record), "text, send": text_s}, parts, preempted)


def _holder(request: Request) -> Holder:
    return Holder(
        name=name_of(request.request_id),
        prompt=request.num_prompt_tokens,
        tokens=len(request.token_ids),
        computed=request.num_computed,
        cached=request.num_cached or 0,
        preemptions=request.num_preemptions,
        blocks=runs(request.block_table),
    )


def name_of(request_id: str) -> str:
    """What a request is called: "7.1/0" with a prompt's and a choice's number, less the prompt's where that is 0.

    Where it is not called by the engine's number for it, its name stands behind that: "12.0 7.1/0".
    """
    return request_id.rpartition(" ")[2].replace(".0", "", 1)


def split(record: StepRecord) -> dict[str, float]:
    """Where a step's time went, by name."""
    named = sum(record.seconds.values())
    if not 0 < named <= record.execute_s:  # larger on a device that computed while the host was elsewhere
        return {"schedule": record.schedule_s, "launch, wait": record.execute_s}
    return {"schedule": record.schedule_s, **record.seconds, "other": record.execute_s - named}


def bucket(seconds: float) -> int:
    """Of a sketch."""
    return math.floor(50 * math.log(max(seconds, 1e-6) * 1e6))


def runs(blocks: "array[int]") -> list[int]:
    """A row of blocks as runs."""
    row = np.array(blocks, np.int64)  # a copy: a view would forbid the table to grow
    if not len(row):
        return []
    starts = np.concatenate(([0], np.flatnonzero(np.diff(row) != 1) + 1))
    counts = np.diff(starts, append=len(row))
    flat: list[int] = np.stack((row[starts], counts), axis=1).ravel().tolist()
    return flat


def runs_of_set(blocks: Iterable[int], num_blocks: int) -> list[int]:
    """A set of blocks as runs."""
    held = np.zeros(num_blocks + 2, np.int8)  # with an edge on both sides
    held[np.fromiter(blocks, np.int64) + 1] = 1
    edges = np.flatnonzero(np.diff(held))
    edges[1::2] -= edges[::2]
    flat: list[int] = edges.tolist()
    return flat
