"""The ranks of a tensor-parallel model as threads of one process: no sockets, and sums and exchanges by hand."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch


class ThreadRanks:
    """`size` communicators that meet at a barrier.

    Attributes:
        rows: [from][to] of all exchanges, what rows one rank has sent another.
    """

    def __init__(self, size):
        self.size, self._parts, self._barrier = size, [None] * size, threading.Barrier(size, timeout=20)
        self.rows = [[[] for _ in range(size)] for _ in range(size)]

    def run(self, function):
        """[function(communicator) of each rank], side by side."""
        with ThreadPoolExecutor(self.size) as pool:
            futures = [pool.submit(self._guarded, function, _Rank(self, rank)) for rank in range(self.size)]
        errors = [error for future in futures if (error := future.exception())]
        for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
            raise error
        return [future.result() for future in futures]

    def _guarded(self, function, communicator):
        """One that fails lets nobody wait for it."""
        try:
            return function(communicator)
        except BaseException:
            self._barrier.abort()
            raise

    def parts(self, rank, mine):
        """What every rank gives."""
        self._parts[rank] = mine
        self._barrier.wait()
        parts = list(self._parts)
        self._barrier.wait()
        return parts


class _Rank:
    def __init__(self, ranks, rank):
        self._ranks, self.rank, self.size = ranks, rank, ranks.size

    def all_reduce(self, x):
        parts = self._ranks.parts(self.rank, x.clone())
        return sum(parts[1:], start=parts[0])

    def all_to_all(self, x, sent, received):
        assert len(sent) == len(received) == self.size
        assert sum(sent) == len(x)
        mine = x.clone().split(list(sent))
        for rank, part in enumerate(mine):
            self._ranks.rows[self.rank][rank].append(part)
        parts = [given[self.rank] for given in self._ranks.parts(self.rank, mine)]
        assert [len(part) for part in parts] == list(received)
        return torch.cat(parts)

    def all_gather(self, x):
        parts = self._ranks.parts(self.rank, x.clone())
        assert len({(part.shape, part.dtype) for part in parts}) == 1
        return torch.cat(parts)
