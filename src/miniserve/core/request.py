"""`Request`: one sequence on its way through the engine.

There is no phase. A request knows its tokens (prompt and output) and how many of them have been computed; whatever
remains is computed next, in pieces of any size. Prefill, a chunk of it, decode, and starting again after preemption are
all "compute tokens from `num_computed` on". Only when every known token is computed does a new one come.

The scheduler alone changes `status`, `block_table`, `num_computed` and `token_ids` while the request lives; the engine
adds times and log-probabilities.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

from miniserve.core.hashing import BlockHash, block_hash, root_hash
from miniserve.core.offer import Offer
from miniserve.core.sampling_params import GREEDY, Limits, SamplingParams
from miniserve.core.times import Times
from miniserve.errors import InvalidRequestError


class Status(Enum):
    """Where a request is."""

    WAITING = "waiting"
    LOADING = "loading"  # its KV is on the way from elsewhere (see connector.py)
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(Enum):
    """Why a request ended. The values are those of the OpenAI API, "abort", "error" for a failed executor, and "moved":
    it goes on in another engine.
    """

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"
    MOVED = "moved"


class Matcher(Protocol):
    """Follows one request's output through its grammar. It belongs to the request, and goes when that goes."""

    def mask(self, guesses: Sequence[int]) -> bytes:
        """Which tokens may come next, if these come first: bit t % 8 of byte t // 8 is token t's.

        Behind guesses that the grammar does not allow, any: what is chosen there is dropped.
        """
        ...

    def accept(self, token: int) -> FinishReason | None:
        """Take an output token; whether the grammar ends the output with it, and why.

        STOP: nothing can follow. ERROR: the grammar could not be followed.
        """
        ...


class TokenLogprob(NamedTuple):
    """A token's log-probability, its rank (1: the likeliest), and the likeliest tokens with theirs, best first."""

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False, slots=True)
class Request:
    """A sequence.

    Args:
        request_id: unique among the engine's live requests.
        prompt_token_ids: at least one.
        limits: when it ends.
        params: how its tokens are chosen; the core only passes it on.
        seed: of its random numbers: output i's depends on (seed, i) and on nothing else.
        priority: smaller goes first; equal ones in order of arrival.
        cache_keys: what the KV content depends on besides the tokens (model, adapter, and last the tenant's salt).
        matcher: follows its output through `params.grammar`, if there is one; its own, of no output yet.
        offer: where the connector may find its first tokens' KV.

    Attributes:
        token_ids: prompt and output.
        max_length: the length at which it ends, prompt and output.
        num_resumed: how many of its output tokens were chosen elsewhere, before it came here.
        num_pending: how many tokens steps in flight choose: they count, but what they are is known only on the device.
        num_in_flight: how many steps in flight it has a part in. They write into its blocks, which it keeps till then.
        num_computed: how many tokens have their KV in `block_table`, or will have when the steps in flight have ended.
        num_registered: how many of its blocks the pool has been told the content of.
        num_cached: how many tokens the first admission found in the pool. A recomputation after preemption finds the
            request's own blocks again, which says nothing about the cache: it is not counted.
        num_reused: these, and what the connector brought then: tokens that need not be computed anew.
        num_loaded: how many tokens' KV came from the connector, all admissions together.
        num_preemptions: how often it lost its blocks.
        may_share: whether what it computes is kept for others: not once its tenant's KV was deleted.
        may_draft: whether tokens ahead may be guessed for it: not once that has failed.
        block_table: its blocks in order. An array, so that a batch can copy it as one piece of memory.
        arrival: the scheduler's running number, which breaks ties of `priority`.
        times: when it was queued, first scheduled, and got each token.
        logprobs: one entry an output token, if `params.logprobs`.
        prompt_logprobs: one entry a prompt token, None for the first, if `params.prompt_logprobs`.

    Example:
        >>> from miniserve.core.request import Request
        >>> from miniserve.core.sampling_params import Limits
        >>> request = Request("a", [1, 2, 3], Limits(max_tokens=2))
        >>> request.append(7), request.append(8)
        (None, <FinishReason.LENGTH: 'length'>)
        >>> request.output_token_ids
        [7, 8]
    """

    request_id: str
    prompt_token_ids: Sequence[int]
    limits: Limits
    params: SamplingParams = GREEDY
    seed: int = 0
    priority: int = 0
    cache_keys: tuple[str, ...] = ()
    matcher: Matcher | None = None
    offer: Offer | None = None
    status: Status = field(default=Status.WAITING, init=False)
    finish_reason: FinishReason | None = field(default=None, init=False)
    token_ids: list[int] = field(init=False)
    num_prompt_tokens: int = field(init=False)
    max_length: int = field(init=False)
    num_resumed: int = field(default=0, init=False)
    num_pending: int = field(default=0, init=False)
    num_in_flight: int = field(default=0, init=False)
    num_computed: int = field(default=0, init=False)
    num_registered: int = field(default=0, init=False)
    num_cached: int | None = field(default=None, init=False)
    num_reused: int = field(default=0, init=False)
    num_loaded: int = field(default=0, init=False)
    num_preemptions: int = field(default=0, init=False)
    may_share: bool = field(default=True, init=False)
    may_draft: bool = field(default=True, init=False)
    block_table: "array[int]" = field(default_factory=lambda: array("i"), init=False)
    arrival: int = field(default=-1, init=False)
    times: Times = field(default_factory=Times, init=False)
    logprobs: list[TokenLogprob] = field(default_factory=list, init=False)
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list, init=False)
    _hashes: list[BlockHash] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if not self.prompt_token_ids:
            raise InvalidRequestError(f"request {self.request_id}: the prompt is empty: it has no tokens")
        self.token_ids = list(self.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.max_length = self.num_prompt_tokens + self.limits.max_tokens

    @property
    def output_token_ids(self) -> list[int]:
        """What was generated so far."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def num_output_tokens(self) -> int:
        """How many tokens were generated so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    def allowed(self) -> bytes | None:
        """Which tokens its grammar lets come next (see `Matcher.mask`); None without a grammar."""
        return self.matcher.mask(()) if self.matcher else None

    @property
    def num_remaining(self) -> int:
        """Tokens that are still to be computed, pending ones included; at least one while the request runs."""
        return len(self.token_ids) + self.num_pending - self.num_computed

    @property
    def is_ending(self) -> bool:
        """Whether it has ended, or will by its length with the tokens that are pending: there is nothing to compute."""
        return self.finish_reason is not None or len(self.token_ids) + self.num_pending >= self.max_length

    @property
    def rank(self) -> tuple[int, int]:
        """Who goes first: the smaller."""
        return self.priority, self.arrival

    @property
    def salt(self) -> str:
        """Its tenant's: only requests of one salt share KV."""
        return self.cache_keys[-1] if self.cache_keys else ""

    @property
    def may_skip_prompt(self) -> bool:
        """Whether KV computed by others may stand in for the prompt's. Not where every position's logits are wanted."""
        return self.params.prompt_logprobs is None

    def block_hashes(self, block_size: int, count: int) -> list[BlockHash]:
        """The identities of at least the first `count` full blocks. Each is computed once."""
        while len(self._hashes) < count:
            at = len(self._hashes)
            parent = self._hashes[-1] if at else root_hash(*self.cache_keys)
            self._hashes.append(block_hash(parent, self.token_ids[at * block_size : (at + 1) * block_size]))
        return self._hashes

    def cut(self, num_output_tokens: int) -> None:
        """Drop the output behind its first so many tokens: a stop string was found in the text of those before.

        For requests that have ended only. The KV of what is dropped may be cached already; it is right for its tokens.
        """
        assert self.finish_reason is not None, "a request that goes on keeps its tokens"
        del self.token_ids[self.num_prompt_tokens + num_output_tokens :]
        own = num_output_tokens - self.num_resumed
        del self.logprobs[own:], self.times.tokens_s[own:]

    def resume(self, tokens: Sequence[int]) -> None:
        """Go on behind output that was chosen elsewhere; before it is queued.

        What follows is what would have followed there: limits, penalties, grammar and random numbers count from the
        output's start. Log-probabilities and times are of the tokens that are chosen here.

        Raises:
            InvalidRequestError: these tokens end it.
        """
        for token in tokens:
            if (reason := self.append(token)) is not None:
                raise InvalidRequestError(
                    f"request {self.request_id}: output token {self.num_output_tokens} of {len(tokens)} to go on from "
                    f"ends it already ({reason.value})"
                )
        self.num_resumed = len(tokens)

    def extend(self, tokens: Sequence[int]) -> Sequence[int]:
        """Take output tokens, up to one that ends the request. Returns those taken."""
        limits, matcher = self.limits, self.matcher
        if not limits.stop_token_ids and not matcher:
            taken = tokens[: self.max_length - len(self.token_ids)]
            self.token_ids += taken
            if len(self.token_ids) >= self.max_length:
                self.finish_reason = FinishReason.LENGTH
            return taken
        for number, token in enumerate(tokens, 1):
            if self.append(token):
                return tokens[:number]
        return tokens

    def append(self, token: int) -> FinishReason | None:
        """Take an output token; whether it ends the request, and why."""
        self.token_ids.append(token)
        length, limits = len(self.token_ids), self.limits
        if token in limits.stop_token_ids and length - self.num_prompt_tokens >= limits.min_tokens:
            self.finish_reason = FinishReason.STOP
        elif self.matcher and (reason := self.matcher.accept(token)):
            self.finish_reason = reason
        elif length >= self.max_length:
            self.finish_reason = FinishReason.LENGTH
        return self.finish_reason
