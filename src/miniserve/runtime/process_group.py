"""The ranks' connections: gloo between CPUs, NCCL between GPUs. Each is a `Communicator`.

A group is an object, not torch's default one, so that two engines can live in one process, each with ranks of its own.
The ranks find each other through a file. All are on one machine.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import reduce
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from miniserve.errors import RankError
from miniserve.model.communicator import as_bytes

# How long a rank waits for another in the middle of a step, or to arrive at the start. They do the same work at the
# same time, so a wait is short unless the machine stalls or one compiles a kernel; a rank that has died is noticed at
# once (`ranks.Ranks`), and this is left for one that hangs.
TIMEOUT_S = 120.0

Wait = Callable[[], object]  # until what was begun is done. Raises RankError: a rank is gone, or hangs


class GlooGroup:
    """Ranks on CPUs, over the loopback interface.

    Every rank sends its part to every other and adds up what comes, in the order of ranks, so that all get the same
    bits. That is one exchange, where gloo's own all-reduce is a ring of several: for a few ranks and the few kilobytes
    of a decode step, time is what the messages' number costs, not their size.

    Args:
        rank, size: which of how many.
        file: where they meet; all give the same one, which is new.

    Raises:
        RuntimeError: the others did not come within `TIMEOUT_S`.
    """

    def __init__(self, rank: int, size: int, file: Path) -> None:
        self.rank, self.size = rank, size
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        options._timeout, options._threads = timedelta(seconds=TIMEOUT_S), 1
        self._group: Any = dist.ProcessGroupGloo(_store(file, size), rank, size, options)

    def all_reduce(self, x: Tensor) -> Tensor:
        """See `Communicator.all_reduce`.

        Raises:
            RankError: a rank is gone, or hangs.
        """
        mine = x.contiguous()
        parts = [mine if rank == self.rank else torch.empty_like(mine) for rank in range(self.size)]
        others = [rank for rank in range(self.size) if rank != self.rank]
        works = [self._group.send([mine], rank, 0) for rank in others]
        works += [self._group.recv([parts[rank]], rank, 0) for rank in others]
        try:
            for work in works:
                work.wait()
        except RuntimeError as error:
            raise self._got_nothing(error) from error
        return reduce(torch.add, parts)

    def all_to_all(self, x: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """See `Communicator.all_to_all`.

        Raises:
            RankError: a rank is gone, or hangs.
        """
        try:
            return _all_to_all(self._group, x, sent, received)
        except RuntimeError as error:
            raise self._got_nothing(error) from error

    def all_gather(self, x: Tensor) -> Tensor:
        """See `Communicator.all_gather`, and `all_to_all`."""
        try:
            return _all_gather(self._group, x, self.size)
        except RuntimeError as error:
            raise self._got_nothing(error) from error

    def send(self, x: Tensor, rank: int) -> Wait:
        """Begin to send x, contiguous and not empty, to one rank."""
        return self._guarded(self._group.send([x], rank, 0))

    def receive(self, x: Tensor, rank: int) -> Wait:
        """Begin to fill x with what that rank sends, the first that is not received yet."""
        return self._guarded(self._group.recv([x], rank, 0))

    def _guarded(self, work: Any) -> Wait:
        def wait() -> None:
            try:
                work.wait()
            except RuntimeError as error:
                raise self._got_nothing(error) from error

        return wait

    def _got_nothing(self, error: RuntimeError) -> RankError:
        return RankError(f"rank {self.rank} got nothing from another rank: {error}")

    def abort(self) -> None:
        """Nothing: the connections of a process that is gone are closed, and that ends the waits for it."""


class NcclGroup:
    """Ranks on GPUs, one each.

    Args:
        rank, size, file: see `GlooGroup`.
        device: this rank's.
    """

    def __init__(self, rank: int, size: int, file: Path, device: torch.device) -> None:
        self.rank, self.size = rank, size
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=TIMEOUT_S)
        self._group: Any = dist.ProcessGroupNCCL(_store(file, size), rank, size, options)
        self.all_reduce(torch.zeros(1, device=device))  # connects them, or fails here

    def all_reduce(self, x: Tensor) -> Tensor:
        """See `Communicator.all_reduce`. Queued on the current stream; does not wait."""
        x = x.contiguous()
        self._group.allreduce([x]).wait()
        return x

    def all_to_all(self, x: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """See `Communicator.all_to_all`. Queued on the current stream."""
        return _all_to_all(self._group, x, sent, received)

    def all_gather(self, x: Tensor) -> Tensor:
        """See `Communicator.all_gather`. Queued on the current stream."""
        return _all_gather(self._group, x, self.size)

    def send(self, x: Tensor, rank: int) -> Wait:
        """See `GlooGroup.send`. Queued; waiting for it queues a wait on the current stream."""
        wait: Wait = self._group.send([x], rank, 0).wait
        return wait

    def receive(self, x: Tensor, rank: int) -> Wait:
        """See `GlooGroup.receive`, and `send`."""
        wait: Wait = self._group.recv([x], rank, 0).wait
        return wait

    def abort(self) -> None:
        """End what waits on this rank's GPU for another, which nothing else would; its results mean nothing."""
        self._group.abort()


Group = GlooGroup | NcclGroup


def connect(rank: int, size: int, file: Path, device: torch.device) -> Group:
    """The group for ranks on devices of this kind. Returns once all are there.

    Raises:
        RuntimeError: see `GlooGroup`.
    """
    if device.type == "cuda":
        return NcclGroup(rank, size, file, device)
    return GlooGroup(rank, size, file)


def _all_to_all(group: Any, x: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
    """As bytes, which every library moves; into zeros: counts that an abort cuts short stay lengths."""
    given = as_bytes(x)
    got = given.new_zeros(sum(received), given.shape[1])
    group.alltoall_base(got, given, list(received), list(sent)).wait()
    return got.view(x.dtype)


def _all_gather(group: Any, x: Tensor, size: int) -> Tensor:
    given = as_bytes(x)
    got = given.new_empty(size * len(given), given.shape[1])
    group._allgather_base(got, given).wait()
    return got.view(x.dtype)


def _store(file: Path, size: int) -> Any:
    store = dist.FileStore(str(file), size)  # type: ignore[attr-defined]
    store.set_timeout(timedelta(seconds=TIMEOUT_S))
    return store
