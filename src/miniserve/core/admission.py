"""`Admission`: requests from their arrival until they run.

They wait by rank, and are let in while there are seats, and blocks for all tokens they know. None overtakes another of
smaller rank, so none starves; only one whose prefix is being computed right now steps aside until it is cached. One
whose KV the connector brings has its blocks and its seat, and has no part in a step until the load has ended.

Cost: of a request that arrives, the logarithm of how many wait; of a step, whom it lets in, whatever the number that
wait.
"""

from itertools import count

from miniserve.core.block_tables import BlockTables
from miniserve.core.connector import KVConnector
from miniserve.core.executor import Scheduled, Step
from miniserve.core.request import Request, Status
from miniserve.core.waiting import PendingBlocks, WaitingQueue


class Admission:
    """The queue, and the way from there into `tables`.

    Args:
        waiting: who waits.
        pending: what those that were let in are computing.
        tables: where they get their blocks.
        connector: asked for the KV of each.
        max_num_seqs: most requests that hold blocks at once.

    Attributes:
        loading: requests whose KV is on its way.
    """

    def __init__(
        self,
        waiting: WaitingQueue,
        pending: PendingBlocks,
        tables: BlockTables,
        connector: KVConnector,
        max_num_seqs: int,
    ) -> None:
        self.loading: list[Request] = []
        self._waiting, self._pending, self._tables = waiting, pending, tables
        self._connector, self._max_num_seqs = connector, max_num_seqs
        self._arrivals = count()

    def add(self, request: Request) -> None:
        """Queue a request that has just arrived."""
        request.arrival = next(self._arrivals)
        self._waiting.push(request)

    def admit(self, step: Step, budget: int, num_running: int) -> int:
        """Let requests into a step by rank, until seats, blocks or the budget run out; returns what is left of it."""
        looked_at, seats = 0, self._max_num_seqs - num_running - len(self.loading)
        while budget and seats and looked_at < self._max_num_seqs:
            request = self._waiting.first()
            if request is None:
                break
            looked_at += 1
            hashes = self._tables.reusable(request)
            shared = self._tables.pool.find(hashes)
            local = len(shared) * self._tables.pool.block_size
            offered = self._connector.lookup(request, local) if request.may_skip_prompt else 0
            if not offered and (filling := self._pending.furthest(request, hashes[len(shared) :])):
                self._pending.park(filling)
                continue
            if not self._tables.take(request, shared):
                break
            self._waiting.pop()
            seats -= 1
            if request.num_cached is None:
                request.num_cached = request.num_reused = local
            if offered:
                assert local + offered < len(request.token_ids), "a connector leaves at least one token to compute"
                request.status = Status.LOADING
                self.loading.append(request)
                self._connector.load(request, local, offered)
                continue
            num_tokens = min(request.num_remaining, budget)
            step.scheduled.append(Scheduled(request, local, num_tokens))
            budget -= num_tokens
        return budget

    def loaded(self, wait: bool) -> list[Request]:
        """Take note of what the connector has done. Returns whose load has ended since the last call: they may run.

        `wait`: there is nothing else to do, so that the connector may sleep a little first.
        """
        progress, ended = self._connector.poll(wait), []
        if progress.released:
            self._tables.let_go(progress.released)
        for request, num_tokens in progress.loaded:
            ended.append(request)
            self.loading.remove(request)
            if request.finish_reason is None:
                request.num_computed += num_tokens
                request.num_loaded += num_tokens
                request.num_reused += 0 if request.num_preemptions else num_tokens
                self._tables.filled(request, request.num_computed)
        return ended
