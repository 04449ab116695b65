"""`Communicator`: how a decoder that holds one slice of a model adds its part to the parts of the others.

The ranks of a tensor-parallel model each hold a slice of every matrix and compute with the same tokens; wherever their
results are parts of a sum, `all_reduce` makes the whole of them. Where experts lie whole on some of the ranks, tokens
travel to them: `all_to_all` and `all_gather`. A decoder is given its communicator when it is made, as it is its
operators. One that is alone has `ALONE`, for which the part is the whole.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Communicator(Protocol):
    """One rank's end of the line.

    Attributes:
        rank: 0 to size - 1.
        size: how many ranks there are.
    """

    @property
    def rank(self) -> int:
        """Which of them this is."""
        ...

    @property
    def size(self) -> int:
        """How many ranks there are."""
        ...

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of every rank's x, of one shape and dtype: the same bits on each of them. It may be x itself."""
        ...

    def all_to_all(self, x: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Rows to every rank, and rows from every rank.

        Args:
            x: [sum of sent, columns]; the first sent[0] rows are for rank 0, the next sent[1] for rank 1, and so on.
            sent: rows for each rank, this one too.
            received: rows that each rank has for this one; all know what the others will send.

        Returns:
            [sum of received, columns], in the order of ranks.
        """
        ...

    def all_gather(self, x: Tensor) -> Tensor:
        """Every rank's x [rows, columns], of one shape and dtype, one below the other: [size · rows, columns]."""
        ...


class _Alone:
    """The whole model is here."""

    rank: int = 0
    size: int = 1

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of one."""
        return x

    def all_to_all(self, x: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:  # noqa: ARG002
        """What one sends itself."""
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """The rows of one."""
        return x


ALONE: Communicator = _Alone()


class Slice(_Alone):
    """Says which slice of a model one has, of how many; its part of a sum is added to the others' by who asked for it.

    Args:
        rank, size: see `Communicator`.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def as_bytes(x: Tensor) -> Tensor:
    """[rows, columns] -> [rows, bytes of a row], also of no rows, whose strides may be anything."""
    return x.reshape(-1).view(torch.uint8).view(len(x), x.shape[1] * x.element_size())
