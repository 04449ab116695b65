"""`Running`: the requests that compute, in order of rank, and what each does in the next step.

Those that lack one token (they decode) come first, so that no flood of prompts can hold them up; then those in the
middle of a prompt, in chunks. One that needs a block when there is none takes those of the running request of largest
rank, which goes back to waiting and is computed again later (what the pool still remembers of it is found by its hash).

Invariants: `requests` is in order of rank; each has blocks for all tokens it knew when it came in, so that only a
decode ever asks for one more. The request of smallest rank is never preempted: as it fits alone, every step makes
progress.
"""

from bisect import insort

from miniserve.core.block_tables import BlockTables
from miniserve.core.executor import Scheduled, Step
from miniserve.core.request import Request, Status
from miniserve.core.waiting import WaitingQueue


class Running:
    """Who runs, with blocks of `tables`; whoever has to give them up goes to `waiting`.

    Attributes:
        requests: by rank, the smallest first.
    """

    def __init__(self, waiting: WaitingQueue, tables: BlockTables) -> None:
        self.requests: list[Request] = []
        self._waiting, self._tables = waiting, tables

    def start(self, request: Request) -> None:
        """A request has its blocks: it runs."""
        request.status = Status.RUNNING
        insort(self.requests, request, key=lambda r: r.rank)

    def proceed(self, step: Step, budget: int) -> int:
        """Give running requests their part in a step; returns what is left of the budget."""
        size, in_prompt, scheduled = self._tables.pool.block_size, [], step.scheduled
        for request in self.requests:  # a preemption takes requests off its end
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
                scheduled.append(Scheduled(request, request.num_computed, num_tokens))
                budget -= num_tokens
        return budget

    def _make_room(self, request: Request, step: Step) -> bool:
        """One more block for a request, preempting from the largest rank down; False if it had to go itself.

        Requests are served in order of rank, so that a victim has no part in the step yet.
        """
        while not self._tables.grow(request):
            victim = self.requests[-1]
            self._preempt(victim)
            step.preempted.append(victim)
            if victim is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        assert not request.num_in_flight, "a step in flight writes into the blocks"
        self.requests.remove(request)
        self._tables.give_back(request)
        request.num_computed = request.num_registered = 0
        request.num_preemptions += 1
        self._waiting.push(request)
