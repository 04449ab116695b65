"""Attention's end of what crosses in a layer: rows go to the other side, what comes back is added up.

Every rank of attention has all of a batch's rows; each sends its share of consecutive ones, and in the end they gather.
To a dense part a row goes once for each rank, which has a slice of it, and their results are parts of a sum, taken in
the order of ranks. To experts it goes once for each rank that has one of its experts, behind the ids asked there; the
answers are weighed and added in the order of the token's choices, in float32, so that sums have the same bits however
many ranks there are.

What goes, in this order, from each rank of attention to each of the other side: of a mixture, the ids [t, K] int32 of
all its rows, -1 for what is not asked there; then the rows that are [r, H], if there are any. What comes back: of a
dense part [t, H]; of experts an answer for each id, row by row [A, H], if there are any. Both ends know all sizes then.

Letters in shapes: T tokens of the batch, t of this rank's share, H hidden size, K experts per token.
"""

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from miniserve.fleet.afd.apart import Apart
from miniserve.model.communicator import Communicator
from miniserve.model.decoder import DecoderLayer
from miniserve.model.expert_plan import ExpertPlan
from miniserve.model.mixture import SparseMLP
from miniserve.runtime.process_group import Group, Wait

Collect = Callable[[], Tensor]  # waits for what comes back: [T, H]


def share(rows: int, rank: int, ranks: int) -> slice:
    """A rank's, of so many rows; the last ones may be smaller or empty."""
    each = -(-rows // ranks)
    return slice(min(rows, each * rank), min(rows, each * (rank + 1)))


class Exchange:
    """Of one rank of attention.

    Args:
        apart: the sides.
        communicator: among attention's ranks.
        group: among all.
        experts: which rank of the other side has which, of a mixture.
    """

    def __init__(
        self, apart: Apart, communicator: Communicator, group: Group, experts: ExpertPlan | None, device: torch.device
    ) -> None:
        self._apart, self._communicator, self._group = apart, communicator, group
        self._others = range(apart.attention, apart.size)
        self._sent: list[Wait] = []
        self._holder: list[Tensor] = []  # of each layer, which of the others has an expert
        for held in experts.layers if experts else ():
            holder = torch.empty(sum(map(len, held)), dtype=torch.int64, device=device)
            for rank, mine in enumerate(held):
                holder[list(mine)] = rank
            self._holder.append(holder)

    def begin(self, number: int, layer: DecoderLayer, x: Tensor, padding: Tensor) -> Collect:
        """Send what a layer's feed-forward part is to see.

        Args:
            number: the layer's.
            layer: for its router.
            x: [T, H].
            padding: [T, 1] bool, rows that no expert is asked for.
        """
        rows = share(len(x), self._communicator.rank, self._communicator.size)
        if isinstance(layer.mlp, SparseMLP):
            back = self._to_experts(self._holder[number], layer.mlp, x[rows], padding[rows])
        else:
            back = self._to_slices(x[rows])
        return lambda: self._gathered(back(), len(x))

    def end(self) -> None:
        """See that all that was sent is gone."""
        for wait in self._sent:
            wait()
        self._sent.clear()

    def _to_slices(self, x: Tensor) -> Collect:
        if not len(x):
            return lambda: x
        parts = [torch.empty_like(x) for _ in self._others]
        waits = [self._there_and_back(x, part, rank) for part, rank in zip(parts, self._others, strict=True)]

        def collect() -> Tensor:
            _all(waits)
            return reduce(torch.add, parts)

        return collect

    def _there_and_back(self, x: Tensor, part: Tensor, rank: int) -> Wait:
        self._sent.append(self._group.send(x.contiguous(), rank))
        return self._group.receive(part, rank)

    def _to_experts(self, holder: Tensor, mlp: SparseMLP, x: Tensor, padding: Tensor) -> Collect:
        if not len(x):
            return lambda: x
        weights, ids = mlp.choose(x, padding)
        asked = torch.where(ids < 0, -1, holder[ids.clamp(min=0)])
        places: list[tuple[Tensor, Tensor]] = []  # of each rank's answers: tokens, choices
        answers: list[Tensor] = []
        waits: list[Wait] = []
        for at, rank in enumerate(self._others):
            there = torch.where(asked == at, ids, -1).int()
            self._sent.append(self._group.send(there, rank))
            token, choice = (there >= 0).nonzero(as_tuple=True)
            places.append((token, choice))
            answers.append(x.new_empty(len(token), x.shape[1]))
            if len(token):
                rows = x[(there >= 0).any(-1)]
                waits.append(self._there_and_back(rows, answers[-1], rank))

        def collect() -> Tensor:
            _all(waits)
            chosen = x.new_zeros(*ids.shape, x.shape[1])
            for (token, choice), found in zip(places, answers, strict=True):
                chosen[token, choice] = found
            total = torch.zeros_like(x, dtype=torch.float32)
            for each in range(ids.shape[1]):
                total += chosen[:, each].float() * weights[:, each, None]
            return total.to(x.dtype)

        return collect

    def _gathered(self, mine: Tensor, rows: int) -> Tensor:
        if self._communicator.size == 1:
            return mine
        each = -(-rows // self._communicator.size)
        whole = mine.new_zeros(each, mine.shape[1])
        whole[: len(mine)] = mine
        return self._communicator.all_gather(whole)[:rows]


def _all(waits: Sequence[Wait]) -> None:
    for wait in waits:
        wait()
