"""`ExpertExchange`: a sparse layer whose experts lie whole on several ranks, and whose tokens travel to them.

All ranks have the step's T tokens when they come here. Each takes its share of consecutive ones and chooses their
experts; then

    counts    how many rows and answers will travel between each two ranks, because the sizes that follow are the data's
    dispatch  a token's row goes once to every rank that is to answer for it, with the ids of the experts asked there
    answer    each rank computes with its own experts what has arrived
    combine   every answer goes back the way its row came, and the token's own rank weighs and adds
    gather    the shares make the whole again, for the next layer

The sum is taken over a token's choices in their order, in float32, and where an answer was computed leaves no trace in
it. So a token's result has the same bits however many ranks there are and whichever copy of an expert answers, if the
operators give a row's result the same bits whatever its batch is. Of an expert with several holders the token's own
rank answers if it is one; the others take turns by the token's place in its share.

Sizes follow the data, so the host waits for the counts and a step of such layers cannot be captured in a CUDA graph.

Letters in shapes: T tokens of the step, t of this rank, H hidden size, E experts, K experts per token, R rows that
arrive, A answers asked of this rank, N ranks.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from miniserve.model.communicator import Communicator, as_bytes

ID_BYTES = 4  # of an expert's id, as it travels

Route = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # x [t, H], padding [t, 1] -> weights, expert ids [t, K]
Answer = Callable[[Tensor, Tensor], Tensor]  # rows [A, H], held experts' numbers [A] -> [A, H]


class _Sent(NamedTuple):
    """What this rank has sent off: rows in the order of ranks, then of tokens.

    Attributes:
        tokens: [S], of which token each row is.
        ids: [S, K], the experts asked with it, -1 for a choice that is another rank's.
        asked: of each rank, how many answers.
    """

    tokens: Tensor
    ids: Tensor
    asked: list[int]


class _Arrived(NamedTuple):
    """What has come for this rank's experts: rows [R, H], ids [R, K] as sent, and how many answers each rank awaits."""

    rows: Tensor
    ids: Tensor
    awaited: list[int]


class ExpertExchange:
    """One rank's end of one layer's exchange.

    Args:
        held: the experts of each rank; each expert is some rank's.
        num_experts: E.
        communicator: to the other ranks.
        device: of the tokens.

    Attributes:
        held: this rank's experts, ascending: an expert's number there is its row in the weights.
    """

    def __init__(
        self, held: Sequence[Sequence[int]], num_experts: int, communicator: Communicator, device: torch.device
    ) -> None:
        self.communicator, self.held = communicator, tuple(held[communicator.rank])
        holders = [[rank for rank, experts in enumerate(held) if each in experts] for each in range(num_experts)]
        most = max(map(len, holders))
        self._holders = torch.tensor([(ranks * most)[:most] for ranks in holders], device=device)
        self._copies = torch.tensor([len(ranks) for ranks in holders], device=device)
        self._numbers = torch.full((num_experts,), -1, device=device)
        self._numbers[list(self.held)] = torch.arange(len(self.held), device=device)
        self._is_mine = self._numbers >= 0

    def __call__(self, x: Tensor, padding: Tensor, route: Route, answer: Answer) -> Tensor:
        """x [T, H], the same on all ranks; padding [T, 1] bool -> [T, H], the same on all; 0 where nobody was asked."""
        share = -(-len(x) // self.communicator.size)
        first = min(len(x), share * self.communicator.rank)
        mine, is_padding = x[first : first + share], padding[first : first + share]
        weights, ids = route(mine, is_padding)
        sent, arrived = self._dispatch(mine, ids)
        row, choice = (arrived.ids >= 0).nonzero(as_tuple=True)
        answers = answer(arrived.rows[row], self._numbers[arrived.ids[row, choice]])
        back = self.communicator.all_to_all(answers, arrived.awaited, sent.asked)
        whole = x.new_zeros(share, x.shape[1])
        whole[: len(mine)] = _add_up(back, sent, weights)
        return self.communicator.all_gather(whole)[: len(x)]

    def ranks_asked(self, ids: Tensor) -> Tensor:
        """Which rank answers for each choice of this rank's tokens. ids [t, K] -> [t, K]; -1 for padding."""
        experts, rank = ids.clamp(min=0), self.communicator.rank
        turns = torch.arange(len(ids), device=ids.device)[:, None] % self._copies[experts]
        holders = self._holders[experts, turns]
        return torch.where(self._is_mine[experts], rank, holders).masked_fill(ids < 0, -1)

    def _dispatch(self, x: Tensor, ids: Tensor) -> tuple[_Sent, _Arrived]:
        asked, ranks = self.ranks_asked(ids), torch.arange(self.communicator.size, device=x.device)
        to_rank, tokens = (asked == ranks[:, None, None]).any(-1).nonzero(as_tuple=True)
        there = torch.where(asked[tokens] == to_rank[:, None], ids[tokens], -1).int()
        rows = torch.bincount(to_rank, minlength=len(ranks))
        answers = torch.zeros_like(rows).index_add_(0, to_rank, (there >= 0).sum(-1))
        going = torch.stack((rows, answers), -1)
        coming = self.communicator.all_to_all(going, [1] * len(ranks), [1] * len(ranks))
        (rows_out, asked_out), (rows_in, awaited) = torch.stack((going, coming)).transpose(1, 2).tolist()
        packed = torch.cat((as_bytes(there), as_bytes(x[tokens])), -1)
        packed = self.communicator.all_to_all(packed, rows_out, rows_in)
        id_bytes = ID_BYTES * ids.shape[1]
        arrived_ids = packed[:, :id_bytes].contiguous().view(torch.int32).long()
        arrived_rows = packed[:, id_bytes:].contiguous().view(x.dtype)
        return _Sent(tokens, there, asked_out), _Arrived(arrived_rows, arrived_ids, awaited)


def _add_up(answers: Tensor, sent: _Sent, weights: Tensor) -> Tensor:
    """Each token's answers, weighted, in the order of its choices. answers [A', H] in the order of `sent` -> [t, H]."""
    row, choice = (sent.ids >= 0).nonzero(as_tuple=True)
    chosen = answers.new_zeros(*weights.shape, answers.shape[1])
    chosen[sent.tokens[row], choice] = answers
    total = torch.zeros_like(chosen[:, 0], dtype=torch.float32)
    for each in range(weights.shape[1]):
        total += chosen[:, each].float() * weights[:, each, None]
    return total.to(answers.dtype)
