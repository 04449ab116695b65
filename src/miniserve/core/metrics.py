"""`Metrics`: what the engine counts: totals and distributions, since it was made.

Plain numbers, updated by the engine and read by whoever exports them (a server's /metrics, a benchmark, a notebook).
Seconds are of the engine's clock, so that a simulated engine reports virtual time.
"""

from dataclasses import dataclass, field

from miniserve.core.histogram import LATENCY_BUCKETS_S, SIZE_BUCKETS, Histogram
from miniserve.core.kv_counts import TierCounts
from miniserve.core.request import FinishReason, Request


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
