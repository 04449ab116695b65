"""`Scheduler`: which requests compute how many tokens in the next step.

One rule for everything: a step has a budget of tokens, and each request that takes part computes some of the tokens it
still lacks. Who gets the budget, in this order:

1. running requests that lack one token (they decode), so that no flood of prompts can hold them up;
2. running requests in the middle of a prompt, in chunks;
3. waiting requests by rank, while there are seats, and blocks for all their tokens. None overtakes another of
   smaller rank, so none starves.

A running request that needs a block when there is none takes those of the running request of largest rank, which goes
back to waiting and is computed again later (what the pool still remembers of it is found by its hash). The request of
smallest rank is never preempted, and `add` refuses one that could not fit alone: so every step makes progress.

Invariants: a running request's block table covers exactly its computed and scheduled tokens; at least one token is
computed even of a prompt that is wholly cached, since the last token's logits are not cached; a block is registered
only after the step that filled it.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from miniserve.core.block_pool import BlockPool
from miniserve.core.request import FinishReason, Request, Status
from miniserve.errors import InvalidRequestError


class Scheduled(NamedTuple):
    """One request's part of a step: tokens [start, start + num_tokens) are computed."""

    request: Request
    start: int
    num_tokens: int

    @property
    def samples(self) -> bool:
        """Whether all known tokens are computed afterwards, so that the last one's logits give a new token."""
        return self.start + self.num_tokens == len(self.request.token_ids)


@dataclass
class Step:
    """What one step computes. `preempted` lost their blocks while it was put together."""

    scheduled: list[Scheduled] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Tokens the step computes, all requests together."""
        return sum(part.num_tokens for part in self.scheduled)


class Scheduler:
    """Requests, a pool of blocks, and the order between them. Single-threaded.

    Args:
        pool: the KV blocks.
        max_num_seqs: most requests that run at once.
        max_num_batched_tokens: a step's budget.
        max_model_len: most tokens of one request, prompt and output.
        prefix_caching: look for, and remember, full blocks by their content.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        prefix_caching: bool = True,
    ) -> None:
        if max_num_seqs < 1 or max_num_batched_tokens < 1:
            raise InvalidRequestError(
                f"max_num_seqs ({max_num_seqs}) and max_num_batched_tokens ({max_num_batched_tokens}) "
                "must be at least 1"
            )
        self.pool = pool
        self.max_num_seqs, self.max_num_batched_tokens = max_num_seqs, max_num_batched_tokens
        self.max_model_len, self.prefix_caching = max_model_len, prefix_caching
        self.running: list[Request] = []
        # A heap. A request that ends while it waits is dropped when it surfaces, so that ending one costs no search.
        self._waiting: list[tuple[tuple[int, int], Request]] = []
        self._num_waiting = 0
        self._arrivals = count()
        self._in_flight: Step | None = None

    @property
    def num_waiting(self) -> int:
        """Requests that wait for their first step, or for another one after preemption."""
        return self._num_waiting

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self.running or self._num_waiting)

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            InvalidRequestError: it is longer than the model or the whole pool allows. Names the numbers.
        """
        prompt, longest = len(request.prompt_token_ids), len(request.prompt_token_ids) + request.limits.max_tokens
        if longest > self.max_model_len:
            raise InvalidRequestError(
                f"request {request.request_id}: {prompt} prompt tokens and max_tokens {request.limits.max_tokens} "
                f"make {longest}; max_model_len is {self.max_model_len}"
            )
        if self._blocks_for(longest) > self.pool.num_blocks:
            raise InvalidRequestError(
                f"request {request.request_id}: {longest} tokens need {self._blocks_for(longest)} KV blocks of "
                f"{self.pool.block_size}; the pool has {self.pool.num_blocks}"
            )
        request.arrival = next(self._arrivals)
        self._wait(request)

    def schedule(self) -> Step:
        """Put the next step together. Call `update` with its outcome before the next `schedule`."""
        assert self._in_flight is None, "the last step was not updated"
        step = Step()
        budget = self.max_num_batched_tokens
        for request in sorted(self.running, key=lambda r: (r.num_remaining > 1, r.rank)):
            if budget == 0:
                break
            if request.status is Status.RUNNING:  # else preempted for an earlier one
                num_tokens = min(request.num_remaining, budget)
                budget += self._make_room(request, num_tokens, step)
                if request.status is Status.RUNNING:
                    step.scheduled.append(Scheduled(request, request.num_computed, num_tokens))
                    budget -= num_tokens
        while budget and not step.preempted and len(self.running) < self.max_num_seqs:
            admitted = self._admit()
            if admitted is None:
                break
            num_tokens = min(admitted.num_remaining, budget)
            self._grow(admitted, num_tokens)  # there is room: `_admit` asked for all its tokens
            step.scheduled.append(Scheduled(admitted, admitted.num_computed, num_tokens))
            budget -= num_tokens
        self._in_flight = step
        return step

    def update(self, step: Step, new_tokens: Sequence[int | None]) -> list[Request]:
        """Take note of a computed step.

        Args:
            step: what `schedule` returned.
            new_tokens: for each of `step.scheduled`, the sampled token if it `samples`, else None.

        Returns:
            The requests that finished, their blocks already released.
        """
        assert step is self._in_flight, "a step is updated once, in order"
        self._in_flight = None
        finished = []
        for (request, start, num_tokens), samples, token in zip(
            step.scheduled, [part.samples for part in step.scheduled], new_tokens, strict=True
        ):
            request.num_computed = start + num_tokens
            self._register(request, start)
            if request.finish_reason is None and samples:  # not aborted while the step was computed
                assert token is not None, f"request {request.request_id}: the executor returned no token"
                request.token_ids.append(token)
                request.finish_reason = request.reason_to_stop()
            if request.finish_reason is not None:
                self._retire(request)
                finished.append(request)
        return finished

    def give_up(self, step: Step) -> list[Request]:
        """End the requests of a step that could not be computed, with an error; returns them."""
        assert step is self._in_flight, "only the step in flight can be given up"
        self._in_flight = None
        requests = [part.request for part in step.scheduled]
        for request in requests:
            request.finish_reason = request.finish_reason or FinishReason.ERROR
            self._retire(request)
        return requests

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request now, from outside: an abort, or a stop string found in its text. Safe to call twice.

        While a step that holds it is being computed, its blocks stay taken until `update`: the device still writes
        into them.
        """
        if request.finish_reason is not None:
            return
        request.finish_reason = reason
        if self._in_flight and any(part.request is request for part in self._in_flight.scheduled):
            return
        self._retire(request)

    def check(self) -> None:
        """Raise AssertionError unless requests and pool agree. For tests; cost: all blocks and running requests."""
        self.pool.check()
        for request in self.running:
            assert request.status is Status.RUNNING
            assert request.num_computed <= len(request.block_table) * self.pool.block_size
            assert len(set(request.block_table)) == len(request.block_table)
        used = {block for request in self.running for block in request.block_table}
        assert len(used) == self.pool.num_blocks - self.pool.num_free, (
            "every block in use is in a running request's table"
        )

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.pool.block_size)

    def _wait(self, request: Request) -> None:
        request.status = Status.WAITING
        heapq.heappush(self._waiting, (request.rank, request))
        self._num_waiting += 1

    def _admit(self) -> Request | None:
        """Start the first waiting request if the pool can hold all its tokens; its shared blocks are taken."""
        while self._waiting and self._waiting[0][1].status is Status.FINISHED:
            heapq.heappop(self._waiting)
        if not self._waiting:
            return None
        request = self._waiting[0][1]
        shared: list[int] = []
        if self.prefix_caching:
            reusable = (len(request.token_ids) - 1) // self.pool.block_size  # the last token is always computed
            shared = self.pool.find(request.block_hashes(self.pool.block_size, reusable))
        self.pool.share(shared)
        if self._blocks_for(len(request.token_ids)) - len(shared) > self.pool.num_free:
            self.pool.release(shared)
            return None
        heapq.heappop(self._waiting)
        self._num_waiting -= 1
        request.status = Status.RUNNING
        request.block_table = shared
        request.num_computed = len(shared) * self.pool.block_size
        if request.num_cached is None:
            request.num_cached = request.num_computed
        self.running.append(request)
        return request

    def _grow(self, request: Request, num_tokens: int) -> bool:
        """Extend the block table to hold `num_tokens` more; False, and no change, if the pool has too few blocks."""
        missing = self._blocks_for(request.num_computed + num_tokens) - len(request.block_table)
        blocks = self.pool.allocate(missing)
        if blocks is None:
            return False
        request.block_table += blocks
        return True

    def _make_room(self, request: Request, num_tokens: int, step: Step) -> int:
        """Grow, preempting from the largest rank down until it works. Returns the budget won back.

        The victim may be the request itself, and may already be part of this step.
        """
        won_back = 0
        while request.status is Status.RUNNING and not self._grow(request, num_tokens):
            victim = max(self.running, key=lambda r: r.rank)
            for part in [part for part in step.scheduled if part.request is victim]:
                step.scheduled.remove(part)
                won_back += part.num_tokens
            self._preempt(victim)
            step.preempted.append(victim)
        return won_back

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self.pool.release(request.block_table)
        request.block_table = []
        request.num_computed = 0
        request.num_preemptions += 1
        self._wait(request)

    def _register(self, request: Request, computed_before: int) -> None:
        """Make the blocks that this step filled findable."""
        if not self.prefix_caching:
            return
        size = self.pool.block_size
        first, last = computed_before // size, request.num_computed // size
        for index, content in enumerate(request.block_hashes(size, last)[first:], start=first):
            self.pool.register(request.block_table[index], content)

    def _retire(self, request: Request) -> None:
        if request.status is Status.RUNNING:
            self.running.remove(request)
            self.pool.release(request.block_table)
            request.block_table = []
        else:
            self._num_waiting -= 1
        request.status = Status.FINISHED
