"""`Request`: one sequence on its way through the engine, and the limits it was given.

There is no phase. A request knows its tokens (prompt and output) and how many of them have been computed; whatever
remains is computed next, in pieces of any size. Prefill, a chunk of it, decode, and starting again after preemption are
all "compute tokens from `num_computed` on". Only when every known token is computed does a new one come.

The scheduler alone changes `status`, `block_table` and `num_computed`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise

from miniserve.core.hashing import BlockHash, block_hash, root_hash
from miniserve.errors import InvalidRequestError


class Status(Enum):
    """Where a request is."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(Enum):
    """Why a request ended. The values are those of the OpenAI API, "abort", and "error" for a failed executor."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True)
class Limits:
    """When a request's output ends.

    Args:
        max_tokens: most output tokens.
        min_tokens: before so many output tokens, no stop token ends it.
        stop_token_ids: tokens that end it: EOS and what the caller adds. They are part of the output.
    """

    max_tokens: int
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InvalidRequestError(f"max_tokens is {self.max_tokens}: it must be at least 1")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens is {self.min_tokens}: it must lie between 0 and max_tokens ({self.max_tokens})"
            )


@dataclass
class Times:
    """Moments of one request, in seconds of the engine's clock; None until they come."""

    queued_s: float = 0.0
    scheduled_s: float | None = None
    tokens_s: list[float] = field(default_factory=list)

    @property
    def ttft_s(self) -> float | None:
        """Time to first token, the wait in the queue included."""
        return self.tokens_s[0] - self.queued_s if self.tokens_s else None

    @property
    def itl_s(self) -> list[float]:
        """The gaps between tokens."""
        return [after - before for before, after in pairwise(self.tokens_s)]


@dataclass(eq=False)
class Request:
    """A sequence.

    Args:
        request_id: unique among the engine's live requests.
        prompt_token_ids: at least one.
        limits: when it ends.
        priority: smaller goes first; equal ones in order of arrival.
        cache_keys: what the KV content depends on besides the tokens (model, adapter, tenant's salt).

    Attributes:
        token_ids: prompt and output.
        num_computed: how many of them have their KV in `block_table`.
        num_cached: how many tokens the first admission found in the prefix cache. A recomputation after preemption
            finds the request's own blocks again, which says nothing about the cache: it is not counted.
        num_preemptions: how often it lost its blocks.
        arrival: the scheduler's running number, which breaks ties of `priority`.
        times: when it was queued, first scheduled, and got each token; the engine's to fill in.
    """

    request_id: str
    prompt_token_ids: Sequence[int]
    limits: Limits
    priority: int = 0
    cache_keys: tuple[str, ...] = ()
    status: Status = field(default=Status.WAITING, init=False)
    finish_reason: FinishReason | None = field(default=None, init=False)
    token_ids: list[int] = field(init=False)
    num_computed: int = field(default=0, init=False)
    num_cached: int | None = field(default=None, init=False)
    num_preemptions: int = field(default=0, init=False)
    block_table: list[int] = field(default_factory=list, init=False)
    arrival: int = field(default=-1, init=False)
    times: Times = field(default_factory=Times, init=False)
    _hashes: list[BlockHash] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if not self.prompt_token_ids:
            raise InvalidRequestError(f"request {self.request_id}: the prompt is empty: it has no tokens")
        self.token_ids = list(self.prompt_token_ids)

    @property
    def output_token_ids(self) -> list[int]:
        """What was generated so far."""
        return self.token_ids[len(self.prompt_token_ids) :]

    @property
    def num_remaining(self) -> int:
        """Known tokens that are still to be computed; at least one while the request runs."""
        return len(self.token_ids) - self.num_computed

    @property
    def rank(self) -> tuple[int, int]:
        """Who goes first: the smaller."""
        return self.priority, self.arrival

    def block_hashes(self, block_size: int, count: int) -> list[BlockHash]:
        """The identities of the first `count` full blocks. Each is computed once."""
        while len(self._hashes) < count:
            at = len(self._hashes)
            parent = self._hashes[-1] if at else root_hash(*self.cache_keys)
            self._hashes.append(block_hash(parent, self.token_ids[at * block_size : (at + 1) * block_size]))
        return self._hashes[:count]

    def reason_to_stop(self) -> FinishReason | None:
        """Whether the newest output token ends the request."""
        produced = len(self.token_ids) - len(self.prompt_token_ids)
        if produced >= max(1, self.limits.min_tokens) and self.token_ids[-1] in self.limits.stop_token_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if produced >= self.limits.max_tokens else None
