"""Who waits, and for what: the queue by rank, and requests parked behind a block that somebody else is computing.

`WaitingQueue` is a heap. A request that ends while it waits is not searched for: it is dropped when it surfaces.

`PendingBlocks` knows the full blocks that running requests are about to fill. When two requests share a prefix that
neither has computed, the second is parked until the first has, and then finds it in the cache: a prefix is computed
once, however many arrive together. A request is only ever parked behind one of smaller rank.
"""

import heapq
from collections.abc import Sequence

from miniserve.core.hashing import BlockHash
from miniserve.core.request import Request, Status


class WaitingQueue:
    """Requests by rank, the smallest first. `len` counts those that wait, parked ones included."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], Request]] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, request: Request) -> None:
        """Let a request wait."""
        request.status = Status.WAITING
        self._length += 1
        heapq.heappush(self._heap, (request.rank, request))

    def first(self) -> Request | None:
        """The request whose turn it is, left in place; None if all others are parked."""
        while self._heap and self._heap[0][1].status is Status.FINISHED:
            heapq.heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def pop(self) -> None:
        """Take `first()` out: it runs."""
        heapq.heappop(self._heap)
        self._length -= 1

    def discard(self, request: Request) -> None:
        """A waiting request has ended."""
        request.status = Status.FINISHED
        self._length -= 1

    def set_aside(self) -> Request:
        """Take `first()` out of turn; it still waits, until `put_back`."""
        return heapq.heappop(self._heap)[1]

    def put_back(self, request: Request) -> None:
        """Undo `set_aside`, unless the request has ended meanwhile."""
        if request.status is Status.WAITING:
            heapq.heappush(self._heap, (request.rank, request))


class PendingBlocks:
    """Blocks being filled: who fills each, and who waits for it instead of in `queue`."""

    def __init__(self, queue: WaitingQueue) -> None:
        self._queue = queue
        self._filler: dict[BlockHash, Request] = {}
        self._parked: dict[BlockHash, list[Request]] = {}

    def claim(self, request: Request, contents: Sequence[BlockHash]) -> None:
        """`request` is going to fill blocks with these contents, unless another one already is."""
        for content in contents:
            self._filler.setdefault(content, request)

    def furthest(self, request: Request, contents: Sequence[BlockHash]) -> BlockHash | None:
        """The last of the leading `contents` that requests of smaller rank are filling; None if the first is not."""
        found = None
        for content in contents:
            filler = self._filler.get(content)
            if filler is None or filler.rank > request.rank:
                break
            found = content
        return found

    def park(self, content: BlockHash) -> None:
        """Keep the first of the queue out of it until `content` is settled."""
        self._parked.setdefault(content, []).append(self._queue.set_aside())

    def settle(self, request: Request, contents: Sequence[BlockHash]) -> None:
        """`request` has filled these, or gave up on them: whoever waited for any of them goes back to the queue."""
        for content in contents:
            if self._filler.get(content) is request:
                del self._filler[content]
                for waited in self._parked.pop(content, ()):
                    self._queue.put_back(waited)

    def check(self) -> None:
        """Raise AssertionError unless every filler runs and every parked request waits for a block being filled."""
        assert all(filler.status in (Status.RUNNING, Status.LOADING) for filler in self._filler.values())
        assert self._parked.keys() <= self._filler.keys()
