"""`Scheduler`: which requests compute how many tokens in the next step.

One rule for everything: a step has a budget of tokens, and each request that takes part computes some of the tokens it
still lacks. Who gets the budget, in this order:

1. running requests that lack one token (they decode), so that no flood of prompts can hold them up;
2. running requests in the middle of a prompt, in chunks;
3. waiting requests by rank, while there are seats, and blocks for all their tokens. None overtakes another of
   smaller rank, so none starves; only one whose prefix is being computed right now steps aside until it is cached;
4. drafts of the decodes of 1, by rank: tokens that a proposer guesses, with what budget and free blocks are left.

A running request that needs a block when there is none takes those of the running request of largest rank, which goes
back to waiting and is computed again later (what the pool still remembers of it is found by its hash). The request of
smallest rank is never preempted, and `add` refuses one that could not fit alone: so every step makes progress.

A draft costs nobody anything: it takes no budget that another could use and no block by preemption. The blocks of what
turned out wrong stay with the request, which needs them next, until somebody finds no free block: then they are given
back before anyone is preempted or kept waiting.

A step may be scheduled while the one before is computed. What that one chooses is then pending: a token that counts,
and gets a slot, before anyone here knows it. Who ends by its length is known ahead; who ends otherwise is found out
when it has a part in the next step already, which is wasted: its blocks stay taken until that step has ended. Nobody is
preempted ahead, and nothing is drafted: `may_run_ahead` says when the step in flight is to be updated first.

Invariants: an admitted request has blocks for all tokens it knew then, so that only a decode ever asks for one more; no
request has more than its tokens and the longest draft need; at least one token is computed even of a prompt that is
wholly cached, since the last token's logits are not cached; a block is registered only after the step that filled it,
and only with tokens that are the request's; `running` is in order of rank.

Cost of a step: linear in the requests it schedules, whatever the number that wait.
"""

from array import array
from bisect import insort
from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

from miniserve.core.block_pool import BlockPool
from miniserve.core.connector import KVConnector, NoConnector
from miniserve.core.executor import Scheduled, Step
from miniserve.core.hashing import BlockHash
from miniserve.core.proposer import NoProposer, Proposer, add_drafts
from miniserve.core.request import FinishReason, Request, Status
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
        self.max_model_len, self.prefix_caching = max_model_len, prefix_caching
        self.connector: KVConnector = connector or NoConnector()
        self.proposer: Proposer = proposer or NoProposer()
        self.running: list[Request] = []
        self.loading: list[Request] = []
        self._waiting = WaitingQueue()
        self._pending = PendingBlocks()
        self._held: list[int] = []  # blocks the connector still reads
        self._arrivals = count()
        self._in_flight: list[Step] = []  # at most two, the older first
        self._idle = False  # the last step was empty

    @property
    def num_waiting(self) -> int:
        """Requests that wait for their first step, or for another one after preemption."""
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished, or the connector still holds blocks."""
        return bool(self.running or self.loading or self._waiting or self._held)

    def check_fits(self, request: Request) -> None:
        """Raise InvalidRequestError if the request is longer than the model or the whole pool allows."""
        prompt, longest = request.num_prompt_tokens, request.max_length
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

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            InvalidRequestError: see `check_fits`.
        """
        self.check_fits(request)
        request.arrival = next(self._arrivals)
        self._waiting.push(request)

    @property
    def may_run_ahead(self) -> bool:
        """Whether the next step can be scheduled before the one in flight is updated.

        Not if somebody has to give up blocks for it, nor with a proposer: a draft follows the newest token.
        """
        if self.proposer.longest:
            return False
        if self.pool.num_free >= len(self.running):
            return True
        return self.pool.num_free >= sum(self._lacks_block(request) for request in self.running)

    def schedule(self) -> Step:
        """Put the next step together. `update` it with its outcome: before the next `schedule`, or if `may_run_ahead`,
        after it.

        The step is empty, and not to be updated, if all there is to do is to wait: for the connector, or for the step
        in flight.
        """
        assert len(self._in_flight) < 2, "no more than one step ahead"
        self._take_note()
        step = Step()
        budget = self._continue_running(step, self.max_num_batched_tokens)
        if not step.preempted:
            budget = self._admit_waiting(step, budget)
            if self.proposer.longest and budget:
                add_drafts(step, budget, self.proposer, self.pool)
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
        outputs = []
        for part, tokens in zip(step.scheduled, new_tokens, strict=True):
            request, start, num_tokens, draft = part
            request.num_in_flight -= 1
            request.num_pending -= bool(tokens)
            end, kept = start + num_tokens - len(draft), []
            if request.finish_reason is None:  # not aborted while the step was computed
                assert bool(tokens) == (end == len(request.token_ids)), "tokens for each part that samples, only there"
                assert len(tokens) < 2 or list(draft[: len(tokens) - 1]) == list(tokens[:-1]), "the draft's, and one"
                for token in tokens:
                    kept.append(token)
                    if request.append(token):
                        break
            # All but the last of the new tokens were computed, as part of the draft. Of what has ended meanwhile, and
            # was cut, only the tokens that are left count.
            accepted = max(len(kept) - 1, 0)
            request.num_computed -= len(draft) - accepted
            end = min(end + accepted, len(request.token_ids))
            if self.prefix_caching and end >= (request.num_registered + 1) * self.pool.block_size:
                self._register(request, end // self.pool.block_size)
            if kept:
                outputs.append(Output(request, kept, request.finish_reason))
            self._retire_if_ended(request)
        return outputs

    def give_up(self, step: Step, reason: FinishReason = FinishReason.ERROR) -> list[Output]:
        """End the requests of a step that could not be computed. Returns those that had not ended already."""
        self._in_flight.remove(step)
        outputs = []
        for part in step.scheduled:
            request = part.request
            request.num_in_flight -= 1
            request.num_pending -= part.samples
            if request.finish_reason is None:
                request.finish_reason = reason
                outputs.append(Output(request, (), reason))
            self._retire_if_ended(request)
        return outputs

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request now, from outside: an abort, or a stop string found in its text. Safe to call twice.

        While a step that holds it is being computed, or a load fills its blocks, they stay taken until that is done:
        somebody still writes into them.
        """
        if request.finish_reason is not None:
            return
        request.finish_reason = reason
        if request.status is not Status.LOADING:
            self._retire_if_ended(request)

    def check(self) -> None:
        """Raise AssertionError unless requests and pool agree. For tests; cost: all blocks and running requests."""
        self.pool.check()
        self._pending.check()
        assert self.running == sorted(self.running, key=lambda r: r.rank)
        holders = self.running + self.loading
        assert len(holders) <= self.max_num_seqs
        for request in holders:
            assert request.status is (Status.RUNNING if request in self.running else Status.LOADING)
            assert request.num_in_flight == sum(p.request is request for s in self._in_flight for p in s.scheduled)
            assert request.num_pending <= request.num_in_flight
            length, blocks = len(request.token_ids) + request.num_pending, len(request.block_table)
            assert max(len(request.token_ids) - 1, request.num_computed) <= blocks * self.pool.block_size
            if request.finish_reason is None:
                assert blocks <= self._blocks_for(min(length + self.proposer.longest, request.max_length))
            assert request.num_registered * self.pool.block_size <= request.num_computed
            assert len(set(request.block_table)) == len(request.block_table)
        used = {block for request in holders for block in request.block_table} | set(self._held)
        assert len(used) == self.pool.num_blocks - self.pool.num_free, (
            "every block in use is in a request's table, or held by the connector"
        )

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.pool.block_size)

    # The step: first those that run, then those that wait.

    def _continue_running(self, step: Step, budget: int) -> int:
        """Give running requests their tokens; returns what is left of the budget."""
        size, in_prompt, scheduled = self.pool.block_size, [], step.scheduled
        for request in self.running:  # a preemption takes requests off its end
            if request.num_in_flight and request.is_ending:
                continue
            computed = request.num_computed
            if len(request.token_ids) + request.num_pending - computed > 1:
                in_prompt.append(request)
            elif len(scheduled) == budget:
                break
            elif computed < len(request.block_table) * size or self._make_room(request, step):
                scheduled.append(Scheduled(request, computed, 1))
        budget -= len(scheduled)
        for request in in_prompt:
            if budget and request.status is Status.RUNNING:  # not preempted by now
                num_tokens = min(request.num_remaining, budget)
                step.scheduled.append(Scheduled(request, request.num_computed, num_tokens))
                budget -= num_tokens
        return budget

    def _admit_waiting(self, step: Step, budget: int) -> int:
        """Start waiting requests by rank, until seats, blocks or the budget run out; returns what is left of it."""
        looked_at = 0
        while budget and looked_at < self.max_num_seqs and len(self.running) + len(self.loading) < self.max_num_seqs:
            request = self._waiting.first()
            if request is None:
                break
            looked_at += 1
            hashes = self._reusable(request)
            shared = self.pool.find(hashes)
            local = len(shared) * self.pool.block_size
            offered = self.connector.lookup(request, local) if request.may_skip_prompt else 0
            if not offered and (filling := self._pending.furthest(request, hashes[len(shared) :])):
                self._pending.park(self._waiting.set_aside(), filling)
                continue
            if not self._take_blocks(request, shared):
                break
            self._waiting.pop()
            request.num_computed, request.num_registered = local, len(shared)
            if request.num_cached is None:
                request.num_cached = local
            self._pending.claim(request, hashes[len(shared) :])
            if offered:
                assert local + offered < len(request.token_ids), "a connector leaves at least one token to compute"
                request.status = Status.LOADING
                self.loading.append(request)
                self.connector.load(request, local, offered)
                continue
            self._run(request)
            num_tokens = min(request.num_remaining, budget)
            step.scheduled.append(Scheduled(request, request.num_computed, num_tokens))
            budget -= num_tokens
        return budget

    def _reusable(self, request: Request) -> list[BlockHash]:
        """The full blocks that could be found rather than computed: all before the last token, which is computed."""
        if not self.prefix_caching or not request.may_skip_prompt:
            return []
        reusable = (len(request.token_ids) - 1) // self.pool.block_size
        return request.block_hashes(self.pool.block_size, reusable)[:reusable]

    def _run(self, request: Request) -> None:
        request.status = Status.RUNNING
        insort(self.running, request, key=lambda r: r.rank)

    # Blocks.

    def _lacks_block(self, request: Request) -> bool:
        """Whether its next token has no slot."""
        return request.num_computed == len(request.block_table) * self.pool.block_size and not request.is_ending

    def _take_blocks(self, request: Request, shared: Sequence[int]) -> bool:
        """Blocks for all tokens of a request, the `shared` ones first; False, and no change, if there are too few."""
        self.pool.share(shared)
        fresh = self._allocate(self._blocks_for(len(request.token_ids)) - len(shared))
        if fresh is None:
            self.pool.release(shared)
            return False
        request.block_table = array("i", [*shared, *fresh])
        return True

    def _allocate(self, count: int) -> list[int] | None:
        """Free blocks, or those that wrong drafts left behind; None, if both are too few."""
        blocks = self.pool.allocate(count)
        if blocks is None and self.proposer.longest:
            for request in self.running:
                needed = self._blocks_for(len(request.token_ids))
                self.pool.release(request.block_table[needed:])
                del request.block_table[needed:]
            blocks = self.pool.allocate(count)
        return blocks

    def _make_room(self, request: Request, step: Step) -> bool:
        """One more block for a request, preempting from the largest rank down; False if it had to go itself.

        Running requests are served in order of rank, so that a victim has no part in the step yet.
        """
        while True:
            blocks = self._allocate(1)
            if blocks is not None:
                request.block_table.extend(blocks)
                return True
            victim = self.running[-1]
            self._preempt(victim)
            step.preempted.append(victim)
            if victim is request:
                return False

    def _preempt(self, request: Request) -> None:
        assert not self._in_flight, "a step in flight writes into the blocks"
        self.running.remove(request)
        self._free(request)
        request.num_computed = request.num_registered = 0
        request.num_preemptions += 1
        self._waiting.push(request)

    def _retire_if_ended(self, request: Request) -> None:
        if request.finish_reason is not None and not request.num_in_flight:
            self._retire(request)

    def _retire(self, request: Request) -> None:
        if request.status is Status.WAITING:
            self._waiting.discard(request)
            return
        (self.running if request.status is Status.RUNNING else self.loading).remove(request)
        self._hold(self.connector.finished(request))
        request.status = Status.FINISHED
        self._free(request)

    def _free(self, request: Request) -> None:
        """Give back a request's blocks, and let those go on that waited for it to fill them."""
        self.pool.release(request.block_table)
        request.block_table = array("i")
        self.proposer.forget(request)
        self._settle(request, self._reusable(request)[request.num_registered :])

    def _register(self, request: Request, num_full: int) -> None:
        """Make the blocks up to index `num_full` findable, and tell the connector of them."""
        first = request.num_registered
        hashes = request.block_hashes(self.pool.block_size, num_full)
        for index in range(first, num_full):
            self.pool.register(request.block_table[index], hashes[index])
        request.num_registered = num_full
        self._settle(request, hashes[first:num_full])
        self._hold(self.connector.computed(request, first))

    def _settle(self, request: Request, contents: Sequence[BlockHash]) -> None:
        for waited in self._pending.settle(request, contents):
            self._waiting.put_back(waited)

    # The connector.

    def _hold(self, blocks: Sequence[int]) -> None:
        if blocks:
            self.pool.share(blocks)
            self._held.extend(blocks)

    def _take_note(self) -> None:
        """Of loads that ended and blocks that the connector no longer needs."""
        progress = self.connector.poll(wait=self._idle)
        for request, num_tokens in progress.loaded:
            if request.finish_reason is not None:
                self._retire(request)
                continue
            self.loading.remove(request)
            request.num_computed += num_tokens
            request.num_loaded += num_tokens
            self._run(request)
            if self.prefix_caching and num_tokens:
                self._register(request, request.num_computed // self.pool.block_size)
        for block in progress.released:
            self._held.remove(block)
            self.pool.release([block])
