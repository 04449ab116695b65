"""`SimulatedDevice`: the `Executor` that computes nothing and says how long it would have taken.

Every sampled token is 0: what matters is how many there are, and whose blocks are alike. It is the scheduler's
`Proposer`, too, for one reason, speed: while every running request decodes and nothing else happens, steps differ in
their time alone, so it drafts the tokens of the next steps, which are sure to be right, and computes all those steps as
one, a *leap*. Each of them has its own end, in `ends_s`. A leap's last step is the first that ends when something may
happen from outside (`horizon`), or in which a request ends; so the schedule is the one without leaps, step by step.

Where the deployment itself drafts (`speculation`), it is that proposer instead: its guesses go through the scheduler
as any other's do, may be wrong, and are verified. Then there are no leaps.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np

from miniserve.core.executor import Computed, Scheduled, Step, StepResult
from miniserve.core.proposer import Proposer
from miniserve.core.request import Request
from miniserve.hardware.cost import Part
from miniserve.simulate.step_time import StepTime

LONGEST_LEAP = 512  # steps

TOKEN = 0


class VirtualClock:
    """Time that passes when it is told to. Call it for the seconds since the start."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """Now."""
        return self.now_s


class SimulatedDevice(Proposer):
    """Advances `clock` by what steps take.

    Args:
        step_time: how long that is.
        clock: the engine's.
        horizon: until when nothing comes from outside that could change what is scheduled, in seconds; asked whenever a
            leap could begin. None: no leaps.
        max_num_batched_tokens: the scheduler's.

    Attributes:
        running: the scheduler's list of requests that compute; set it before the first step.
        ends_s: of the last launch: when each of its steps ended, in order.
        slowdown: every step takes so many times as long, for what goes wrong.
    """

    def __init__(
        self,
        step_time: StepTime,
        clock: VirtualClock,
        *,
        horizon: Callable[[], float] | None = None,
        max_num_batched_tokens: int,
    ) -> None:
        self._step_time, self._clock, self._horizon = step_time, clock, horizon
        self._budget = max_num_batched_tokens
        self.running: Sequence[Request] = ()
        self.ends_s: list[float] = []
        self._run_s: list[float] = []  # what the next launch may use
        self.slowdown = 1.0

    # The executor.

    def launch(self, step: Step) -> Computed:
        """Of `Executor`."""
        scheduled, speculation = step.scheduled, self._step_time.speculation
        if not speculation and all(part.num_tokens - len(part.draft) == 1 and part.samples for part in scheduled):
            drafted = min(len(part.draft) for part in scheduled)
            if not drafted:
                self._run_s = self._decode_ends([part.start for part in scheduled], 1, math.inf)
            self.ends_s = self._run_s[: 1 + drafted]
            tokens = [[TOKEN] * (1 + drafted)] * len(scheduled)
        else:
            parts = [Part(part.start, part.num_tokens, (1 + len(part.draft)) * part.samples) for part in scheduled]
            self.ends_s = [self._clock.now_s + self._step_time.seconds(parts) * self.slowdown]
            tokens = [[TOKEN] * (1 + self._right(part)) if part.samples else [] for part in scheduled]
        self._clock.now_s = self.ends_s[-1]
        return Computed(StepResult(tokens))

    def ends(self, tokens: int) -> Sequence[float]:
        """When so many tokens of a request came in the last launch: one a step, or guesses and what follows at once."""
        return self.ends_s if tokens == len(self.ends_s) else self.ends_s * tokens

    def _right(self, part: Scheduled) -> int:
        """How many of a part's guesses are."""
        speculation, request = self._step_time.speculation, part.request
        if not speculation or not part.draft:
            return 0
        return speculation.right(request.request_id, len(request.token_ids), len(part.draft))

    # The proposer.

    @property
    def longest(self) -> int:
        """Of `Proposer`."""
        if self._step_time.speculation:
            return self._step_time.speculation.guesses
        return LONGEST_LEAP - 1 if self._horizon else 0

    def propose(self, requests: Sequence[Request], rooms: Sequence[int]) -> Sequence[Sequence[int]]:
        """Of `Proposer`: as many tokens for each as all may have, unless somebody else has a part in the step."""
        if self._step_time.speculation:
            return [[TOKEN] * room for room in rooms]
        most = min(*rooms, (self._budget - len(requests)) // len(requests)) if len(requests) == len(self.running) else 0
        if most < 1 or self._horizon is None:
            return [()] * len(requests)
        starts = [len(request.token_ids) - 1 for request in requests]
        self._run_s = self._decode_ends(starts, 1 + most, self._horizon())
        return [[TOKEN] * (len(self._run_s) - 1)] * len(requests)

    def forget(self, request: Request) -> None:
        """Of `Proposer`."""

    def _decode_ends(self, starts: Sequence[int], most: int, horizon_s: float) -> list[float]:
        """When successive steps of decodes end: `most` of them, or until the horizon is reached."""
        now_s, requests, cached, longest = self._clock.now_s, len(starts), sum(starts), max(starts)
        first_s = self._step_time.decode_seconds(requests, cached, longest) * self.slowdown
        if most == 1 or now_s + first_s >= horizon_s:
            return [now_s + first_s]
        if horizon_s < math.inf:  # no step is shorter than the first: contexts only grow
            most = min(most, math.ceil((horizon_s - now_s) / first_s))
        seconds = self._step_time.decode_run_seconds(requests, cached, longest, most) * self.slowdown
        ends: list[float] = (now_s + np.cumsum(seconds)).tolist()
        return ends[: bisect_left(ends, horizon_s) + 1]
