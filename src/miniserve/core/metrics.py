"""What the engine counts: totals, distributions, and a record of each step.

Plain numbers, updated by the engine and read by whoever exports them (a server's /metrics, a benchmark, a notebook).
Seconds are of the engine's clock, so that a simulated engine reports virtual time.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from miniserve.core.request import FinishReason, Request

LATENCY_BUCKETS_S = tuple(base * 10.0**power for power in range(-4, 3) for base in (1.0, 2.0, 5.0))
SIZE_BUCKETS = tuple(float(2**power) for power in range(15))


class Histogram:
    """Counts of observed values by bucket.

    Args:
        bounds: upper bounds, ascending, each inclusive; a last bucket takes what is larger than all.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum, self.count = 0.0, 0

    def observe(self, value: float, times: int = 1) -> None:
        """Count one value, as often as it came."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times
        self.count += times

    def add(self, other: "Histogram") -> None:
        """Take in what another one of the same bounds has counted."""
        assert other.bounds == self.bounds, "what is added has the same buckets"
        self.counts = [own + theirs for own, theirs in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum
        self.count += other.count

    @property
    def mean(self) -> float | None:
        """Of all values; None if there were none."""
        return self.sum / self.count if self.count else None


class PartRecord(NamedTuple):
    """One request's part of a step: which tokens were computed, and whether new ones came.

    Of `num_tokens`, the last `num_drafted` were guesses, and `num_accepted` of these were right.
    """

    request_id: str
    start: int
    num_tokens: int
    sampled: bool
    num_drafted: int = 0
    num_accepted: int = 0


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step, for drawing and for finding where time goes.

    Attributes:
        index: a running number.
        start_s: when the scheduler began.
        schedule_s: the scheduler's own time, before and after the execution.
        execute_s: the host's time in the executor: launching the step, and waiting for it. Where steps overlap, the
            device takes longer: it computed while the host scheduled.
        seconds: the executor's own times, by name; a split of `execute_s` where steps do not overlap.
        parts: who computed what.
        preempted: who lost its blocks.
        num_running, num_waiting: after the step.
        num_free_blocks: after the step; free blocks may still be cached.
    """

    index: int
    start_s: float
    schedule_s: float
    execute_s: float
    seconds: dict[str, float]
    parts: tuple[PartRecord, ...]
    preempted: tuple[str, ...]
    num_running: int
    num_waiting: int
    num_free_blocks: int

    @property
    def num_tokens(self) -> int:
        """Tokens computed in the step."""
        return sum(part.num_tokens for part in self.parts)


@dataclass
class TierCounts:
    """What a tier of KV beside the device has done. Blocks, but for bytes and seconds.

    Attributes:
        capacity_bytes, used_bytes: how much it may hold, and does.
        hits: loaded from it.
        misses: of prompts, computed although the tiers were asked, or loaded from a slower tier: this one had them not.
        declined: had, and yet computed, since that was faster.
        saves: written to it.
        skipped: not written: too much was waiting to be already.
        evictions: dropped for room.
        corrupt: dropped because their content was not what had been written.
        errors: that the system refused to read or write.
        loaded_bytes, saved_bytes, load_s, save_s: what these moved, and how long it took; of loads with their way into
            the device, of saves without the way out of it.
    """

    capacity_bytes: int = 0
    used_bytes: int = 0
    hits: int = 0
    misses: int = 0
    declined: int = 0
    saves: int = 0
    skipped: int = 0
    evictions: int = 0
    corrupt: int = 0
    errors: int = 0
    loaded_bytes: int = 0
    saved_bytes: int = 0
    load_s: float = 0.0
    save_s: float = 0.0


@dataclass
class MoveCounts:
    """Requests that left for other engines, and came from them (see fleet/moves.py).

    Attributes:
        num_left, left_bytes, left_s: whose KV was put where others can read it, and what that took.
        num_arrived, arrived_bytes, arrived_s: whose KV was fetched, what was missing of it, and what that took.
        held, held_bytes: what stands to be fetched now.
        expired: what nobody came for in time.
        refused: for which there was no room.
        failed: copies that failed; their requests are computed again.
    """

    num_left: int = 0
    left_bytes: int = 0
    left_s: float = 0.0
    num_arrived: int = 0
    arrived_bytes: int = 0
    arrived_s: float = 0.0
    held: int = 0
    held_bytes: int = 0
    expired: int = 0
    refused: int = 0
    failed: int = 0

    def left(self, num_bytes: int, seconds: float) -> None:
        """A request's KV stands to be fetched."""
        self.num_left += 1
        self.left_bytes += num_bytes
        self.left_s += seconds
        self.held += 1
        self.held_bytes += num_bytes

    def arrived(self, num_bytes: int, seconds: float) -> None:
        """A request's KV is here."""
        self.num_arrived += 1
        self.arrived_bytes += num_bytes
        self.arrived_s += seconds


def imbalance(tokens: Sequence[int]) -> float | None:
    """How many times the mean the busiest expert of a layer got; None before the first token."""
    total = sum(tokens)
    return max(tokens) * len(tokens) / total if total else None


@dataclass
class Metrics:
    """Totals since the engine was made.

    `num_prompt_tokens` and `num_cached_tokens` count a request once, at its first admission: what is recomputed after a
    preemption, and found again, is neither asked for by a user nor a hit of the cache.

    `tiers` are those of KV beside the device, by name; whoever runs them counts.

    `num_output_tokens` came in `num_samplings` parts of steps. `drafted[i]` of the drafts had a token i, and
    `accepted[i]` of these were right up to it.
    """

    num_steps: int = 0
    num_computed_tokens: int = 0
    num_output_tokens: int = 0
    num_samplings: int = 0
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_loaded_tokens: int = 0
    num_preemptions: int = 0
    tiers: dict[str, TierCounts] = field(default_factory=dict)
    finished: dict[FinishReason, int] = field(default_factory=lambda: dict.fromkeys(FinishReason, 0))
    schedule_s: float = 0.0
    execute_s: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    queue_s: Histogram = field(default_factory=lambda: Histogram(LATENCY_BUCKETS_S))
    ttft_s: Histogram = field(default_factory=lambda: Histogram(LATENCY_BUCKETS_S))
    itl_s: Histogram = field(default_factory=lambda: Histogram(LATENCY_BUCKETS_S))
    e2e_s: Histogram = field(default_factory=lambda: Histogram(LATENCY_BUCKETS_S))
    batch_size: Histogram = field(default_factory=lambda: Histogram(SIZE_BUCKETS))

    @property
    def hit_rate(self) -> float | None:
        """Share of prompt tokens found in the prefix cache; None before the first prompt."""
        return self.num_cached_tokens / self.num_prompt_tokens if self.num_prompt_tokens else None

    @property
    def acceptance(self) -> float | None:
        """Share of drafted tokens that were right; None before the first draft."""
        return sum(self.accepted) / sum(self.drafted) if self.drafted else None

    @property
    def tokens_per_step(self) -> float | None:
        """Mean tokens that a request got of a step that gave it any; None before the first."""
        return self.num_output_tokens / self.num_samplings if self.num_samplings else None

    def verified(self, num_drafted: int, num_accepted: int) -> None:
        """So many of a draft's tokens were right."""
        missing = num_drafted - len(self.drafted)
        self.drafted += [0] * missing
        self.accepted += [0] * missing
        for position in range(num_drafted):
            self.drafted[position] += 1
            self.accepted[position] += position < num_accepted

    def admitted(self, request: Request) -> None:
        """A request takes part in a step for the first time.

        One that was begun elsewhere has been counted there.
        """
        if not request.num_resumed:
            self.num_prompt_tokens += request.num_prompt_tokens
            self.num_cached_tokens += request.num_cached or 0
        if (waited := request.times.queue_s) is not None:
            self.queue_s.observe(waited)

    def tokens(self, request: Request, number: int) -> None:
        """A request got so many tokens of one step, one at least; their moment is noted already."""
        self.num_output_tokens += number
        self.num_samplings += 1
        moments = request.times.tokens_s
        if len(moments) > number:
            self.itl_s.observe(moments[-1] - moments[-number - 1])
        elif not request.num_resumed:
            self.ttft_s.observe(moments[0] - request.times.queued_s)
        if number > 1:
            self.itl_s.observe(0.0, number - 1)

    def ended(self, request: Request, reason: FinishReason) -> None:
        """A request ended; its moment is noted already."""
        self.finished[reason] += 1
        self.num_preemptions += request.num_preemptions
        self.num_loaded_tokens += request.num_loaded
        if request.times.finished_s is not None:
            self.e2e_s.observe(request.times.finished_s - request.times.queued_s)
