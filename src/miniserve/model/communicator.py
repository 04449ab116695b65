"""`Communicator`: how a decoder that holds one slice of a model adds its part to the parts of the others.

The ranks of a tensor-parallel model each hold a slice of every matrix and compute with the same tokens; wherever their
results are parts of a sum, `all_reduce` makes the whole of them. A decoder is given its communicator when it is made,
as it is its operators. One that is alone has `ALONE`, for which the part is the whole.
"""

from typing import Protocol

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


class _Alone:
    """The whole model is here."""

    rank, size = 0, 1

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of one."""
        return x


ALONE: Communicator = _Alone()
