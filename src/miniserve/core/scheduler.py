"""`Scheduler`: which requests compute how many tokens in the next step.

One rule for everything: a step has a budget of tokens, and each request that takes part computes some of the tokens it
still lacks. Who gets the budget, in this order:

1. running requests that lack one token (they decode), and
2. running requests in the middle of a prompt, in chunks (both: `Running`);
3. waiting requests by rank, while there are seats, and blocks for all their tokens (`Admission`);
4. drafts of the decodes of 1, by rank: tokens that a proposer guesses, with what budget and free blocks are left.

A draft costs nobody anything: it takes no budget that another could use, and its blocks are given back before anyone is
preempted or kept waiting.

A step may be scheduled while the one before is computed. What that one chooses is then pending: a token that counts,
and gets a slot, before anyone here knows it. Who ends by its length is known ahead; who ends otherwise is found out
when it has a part in the next step already, which is wasted: its blocks stay taken until that step has ended. Nobody is
preempted ahead, and nothing is drafted: `may_run_ahead` says when the step in flight is to be updated first.

Invariants: at least one token is computed even of a prompt that is wholly cached, since the last token's logits are not
cached; no request has more blocks than its tokens and the longest draft need, and it keeps them while a step in flight
writes there. `add` refuses a request that could not fit alone, so that every step makes progress.

Cost of a step: linear in the requests it schedules, whatever the number that wait.
"""

from collections.abc import Sequence
from typing import NamedTuple

from miniserve.core.admission import Admission
from miniserve.core.block_pool import BlockPool
from miniserve.core.block_tables import BlockTables
from miniserve.core.connector import KVConnector, NoConnector
from miniserve.core.executor import Step
from miniserve.core.proposer import NoProposer, Proposer, add_drafts
from miniserve.core.request import FinishReason, Request, Status
from miniserve.core.running import Running
from miniserve.core.waiting import PendingBlocks, WaitingQueue
from miniserve.errors import InvalidRequestError


class Output(NamedTuple):
    """What a step did for one request: new tokens, its end, or both."""

    request: Request
    tokens: Sequence[int]
    finish_reason: FinishReason | None


class Scheduler:
    """Requests, a pool of blocks, and the order between them. Single-threaded.

    Args:
        pool: the KV blocks.
        max_num_seqs: most requests that hold blocks at once.
        max_num_batched_tokens: a step's budget.
        max_model_len: most tokens of one request, prompt and output.
        prefix_caching: look for, and remember, full blocks by their content.
        connector: KV that lives elsewhere.
        proposer: guesses tokens ahead.

    Example:
        >>> from miniserve.core.block_pool import BlockPool
        >>> from miniserve.core.request import Request
        >>> from miniserve.core.sampling_params import Limits
        >>> from miniserve.core.scheduler import Scheduler
        >>> pool = BlockPool(num_blocks=8, block_size=4)
        >>> scheduler = Scheduler(pool, max_num_seqs=4, max_num_batched_tokens=8, max_model_len=32)
        >>> scheduler.add(Request("a", [1] * 10, Limits(max_tokens=1)))
        >>> step = scheduler.schedule()
        >>> [(part.start, part.num_tokens, part.samples) for part in step.scheduled]
        [(0, 8, False)]
        >>> scheduler.update(step, [[]])
        []
        >>> step = scheduler.schedule()
        >>> [(part.start, part.num_tokens, part.samples) for part in step.scheduled]
        [(8, 2, True)]
        >>> [(output.tokens, output.finish_reason.value) for output in scheduler.update(step, [[7]])]
        [([7], 'length')]
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        prefix_caching: bool = True,
        connector: KVConnector | None = None,
        proposer: Proposer | None = None,
    ) -> None:
        for name, value in (("max_num_seqs", max_num_seqs), ("max_num_batched_tokens", max_num_batched_tokens)):
            if value < 1:
                raise InvalidRequestError(f"{name} is {value}: it must be at least 1")
        self.pool = pool
        self.max_num_seqs, self.max_num_batched_tokens = max_num_seqs, max_num_batched_tokens
        self.max_model_len = max_model_len
        self.proposer: Proposer = proposer or NoProposer()
        elsewhere: KVConnector = connector or NoConnector()
        self._waiting = WaitingQueue()
        pending = PendingBlocks(self._waiting)
        self._tables = BlockTables(pool, pending, elsewhere, prefix_caching)
        self._running = Running(self._waiting, self._tables)
        self._admission = Admission(self._waiting, pending, self._tables, elsewhere, max_num_seqs)
        self._in_flight: list[Step] = []  # at most two, the older first
        self._idle = False  # the last step was empty

    @property
    def running(self) -> list[Request]:
        """Requests that compute, by rank."""
        return self._running.requests

    @property
    def loading(self) -> list[Request]:
        """Requests that hold blocks into which the connector loads their KV."""
        return self._admission.loading

    @property
    def num_waiting(self) -> int:
        """Requests that wait for their first step, or for another one after preemption."""
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished, or the connector still holds blocks."""
        return bool(self.running or self.loading or self._waiting or self._tables.any_held)

    def forget(self, salt: str) -> int:
        """Forget what a tenant has cached on the device; see `BlockTables.forget`. Its requests go on."""
        return self._tables.forget(salt)

    def check_fits(self, request: Request) -> None:
        """Raise InvalidRequestError if the request is longer than the model or the whole pool allows."""
        prompt, longest = request.num_prompt_tokens, request.max_length
        if longest > self.max_model_len:
            raise InvalidRequestError(
                f"request {request.request_id}: {prompt} prompt tokens and max_tokens {request.limits.max_tokens} "
                f"make {longest}; max_model_len is {self.max_model_len}"
            )
        if (needed := self._tables.needed(longest)) > self.pool.num_blocks:
            raise InvalidRequestError(
                f"request {request.request_id}: {longest} tokens need {needed} KV blocks of {self.pool.block_size}; "
                f"the pool has {self.pool.num_blocks}"
            )

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            InvalidRequestError: see `check_fits`.
        """
        self.check_fits(request)
        self._admission.add(request)

    @property
    def may_run_ahead(self) -> bool:
        """Whether the next step can be scheduled before the one in flight is updated.

        Not if somebody has to give up blocks for it, nor with a proposer: a draft follows the newest token.
        """
        free, running = self.pool.num_free, self.running
        return not self.proposer.longest and (free >= len(running) or free >= sum(map(self._tables.lacks, running)))

    def schedule(self) -> Step:
        """Put the next step together. `update` it with its outcome: before the next `schedule`, or if `may_run_ahead`,
        after it.

        It is empty, and not to be updated, if all there is to do is to wait: for the connector, or the step in flight.
        """
        assert len(self._in_flight) < 2, "no more than one step ahead"
        for request in self._admission.loaded(wait=self._idle):
            self._running.start(request)
            if request.finish_reason is not None:
                self._retire(request)
        step = Step()
        budget = self._running.proceed(step, self.max_num_batched_tokens)
        if step.preempted:
            for request in step.preempted:
                self.proposer.forget(request)
        else:
            continued = len(step.scheduled)
            budget = self._admission.admit(step, budget, len(self._running.requests))
            for part in step.scheduled[continued:]:
                self._running.start(part.request)
            if self.proposer.longest and budget:
                add_drafts(step, budget, self.proposer, self._tables)
        for request, start, num_tokens, draft in step.scheduled:
            request.num_computed = end = start + num_tokens
            request.num_pending += end - len(draft) >= len(request.token_ids)
            request.num_in_flight += 1
        if step.scheduled:
            self._in_flight.append(step)
        self._idle = not self._in_flight
        return step

    def update(self, step: Step, new_tokens: Sequence[Sequence[int]]) -> list[Output]:
        """Take note of a computed step.

        Args:
            step: what `schedule` returned.
            new_tokens: for each of `step.scheduled`, the tokens that follow its known ones: at least one if it
                `samples`, else none.

        Returns:
            What changed, in the step's order: nothing for requests that had ended already. Requests that ended have
            released their blocks, or will when the next step has ended, if they are part of it; of their tokens, those
            behind the one that ended them are dropped.
        """
        assert step is self._in_flight[0], "a step is updated once, in order"
        del self._in_flight[0]
        outputs, size = [], self.pool.block_size
        for part, tokens in zip(step.scheduled, new_tokens, strict=True):
            request, start, num_tokens, draft = part
            request.num_in_flight -= 1
            request.num_pending -= bool(tokens)
            end: int = start + num_tokens - len(draft)
            kept: Sequence[int] = ()
            if request.finish_reason is None:  # not aborted while the step was computed
                assert bool(tokens) == (end == len(request.token_ids)), "tokens for each part that samples, only there"
                assert len(tokens) < 2 or list(draft[: len(tokens) - 1]) == list(tokens[:-1]), "the draft's, and one"
                kept = request.extend(tokens)
            # All but the last of the new tokens were computed, as part of the draft. Of a request that has ended
            # meanwhile only those tokens count that were not cut, and not computed on top of a step that failed.
            accepted = max(len(kept) - 1, 0)
            request.num_computed -= len(draft) - accepted
            end = min(end + accepted, len(request.token_ids), request.num_computed)
            if end >= (request.num_registered + 1) * size:
                self._tables.filled(request, end)
            if kept:
                outputs.append(Output(request, kept, request.finish_reason))
            if request.finish_reason is not None:
                self._retire(request)
        return outputs

    def give_up(self, step: Step, reason: FinishReason = FinishReason.ERROR) -> list[Output]:
        """End the requests of a step that could not be computed. Returns those that had not ended already."""
        self._in_flight.remove(step)
        outputs = []
        for part in step.scheduled:
            request = part.request
            request.num_in_flight -= 1
            request.num_pending -= part.samples
            request.num_computed = min(request.num_computed, part.start)
            if request.finish_reason is None:
                request.finish_reason = reason
                outputs.append(Output(request, (), reason))
            self._retire(request)
        return outputs

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request now, from outside: an abort, or a stop string found in its text. Safe to call twice.

        While a step that holds it is being computed, or a load fills its blocks, they stay taken until that is done:
        somebody still writes into them.
        """
        if request.finish_reason is None:
            request.finish_reason = reason
            if request.status is not Status.LOADING:
                self._retire(request)

    def check(self) -> None:
        """Raise AssertionError unless requests and pool agree. For tests; cost: all blocks and running requests."""
        holders = self.running + self.loading
        self._tables.check(holders)
        assert self.running == sorted(self.running, key=lambda r: r.rank)
        assert len(holders) <= self.max_num_seqs
        for request in holders:
            assert request.status is (Status.RUNNING if request in self.running else Status.LOADING)
            assert request.num_in_flight == sum(p.request is request for s in self._in_flight for p in s.scheduled)
            assert request.num_pending <= request.num_in_flight
            if request.finish_reason is None:
                length = len(request.token_ids) + request.num_pending + self.proposer.longest
                assert len(request.block_table) <= self._tables.needed(min(length, request.max_length))

    def _retire(self, request: Request) -> None:
        """The request has ended: let go of it, unless a step in flight still writes into its blocks."""
        if request.status is Status.WAITING:
            self._waiting.discard(request)
        elif not request.num_in_flight:
            self.running.remove(request)
            request.status = Status.FINISHED
            self._tables.end(request)
            self.proposer.forget(request)
