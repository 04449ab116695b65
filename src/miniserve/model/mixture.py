"""`SparseMLP`: the feed-forward part of a layer that has experts, of which each token goes to a few.

Padding goes to no expert, so that nobody reads one for it. The answers of a token are added up in the order of its
choices, wherever the experts lie. Letters as in `decoder`; K experts of a token, A rows of a rank.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from miniserve.kernels.expert_stack import ExpertStack
from miniserve.model.config import ModelConfig, MoE
from miniserve.model.expert_parallel import ExpertExchange
from miniserve.model.layers import Linear, Placement

STACKS = ("gate_up", "down")


class SparseMLP(nn.Module):
    """A mixture of experts: a router, and E feed-forward layers stacked as gate_up [E, 2·I, H] and down [E, H, I].

    Of a layer whose experts are shared out whole (`held`: each rank's), the stacks have this rank's.
    """

    def __init__(self, config: ModelConfig, moe: MoE, place: Placement, held: Sequence[Sequence[int]] = ()) -> None:
        super().__init__()
        experts, hidden, inner = moe.num_experts, config.hidden_size, moe.intermediate_size
        self.moe, self.ops, self.communicator = moe, place.ops, place.communicator
        self.router = Linear(hidden, experts, place)
        self.exchange = ExpertExchange(held, experts, place.communicator, place.device) if held else None
        experts = len(self.exchange.held) if self.exchange else experts
        self.gate_up = place.parameter(experts, 2 * inner, hidden)
        self.down = place.parameter(experts, hidden, inner)
        self._packed: dict[str, ExpertStack] = {}
        #: [E + 1] int64: how many tokens each expert got, behind how many choices were padding; None: not counted.
        self.counts: Tensor | None = None

    @property
    def experts(self) -> tuple[Tensor | ExpertStack, Tensor | ExpertStack]:
        """gate_up and down: floats, or whatever they were packed to."""
        first, second = (self._packed.get(name, getattr(self, name)) for name in STACKS)
        return first, second

    @property
    def stacks(self) -> tuple[ExpertStack, ExpertStack]:
        """gate_up and down as they lie in memory."""
        first, second = map(ExpertStack.of, self.experts)
        return first, second

    @property
    def packed(self) -> list[ExpertStack]:
        """Those that are no parameters any more."""
        return [*self._packed.values()]

    def pack(self, name: str, stack: ExpertStack) -> None:
        """Put "gate_up" or "down" in another form, or elsewhere in memory; the parameter's memory is given back."""
        self._packed[name] = stack
        setattr(self, name, nn.Parameter(getattr(self, name).new_empty(0), requires_grad=False))

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """x [T, H]; padding [T, 1] bool -> [T, H]. Padding goes to no expert, and what comes of it is 0."""
        if self.exchange:
            return self.exchange(x, padding, self.choose, self.answer)
        return self.mix(x, self.router(x), padding)

    def mix(self, x: Tensor, scores: Tensor, padding: Tensor) -> Tensor:
        """The same with the router's scores [T, E], where each rank has a slice of every expert."""
        weights, expert_ids = self._chosen(scores, padding)
        return self.communicator.all_reduce(self.ops.moe(x, weights, expert_ids, *self.experts))

    def choose(self, x: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """Each token's weights and expert ids [T, K], -1 for padding; of x [T, H]."""
        return self._chosen(self.router(x), padding)

    def _chosen(self, scores: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        weights, expert_ids = self.ops.route(scores, self.moe.experts_per_token, self.moe.normalize_weights)
        expert_ids = expert_ids.masked_fill(padding, -1)
        if self.counts is not None:  # the same few operations whatever was chosen, as a CUDA graph needs them
            self.counts.index_add_(0, expert_ids.flatten() + 1, torch.ones_like(expert_ids.flatten()))
        return weights, expert_ids

    def answer(self, rows: Tensor, experts: Tensor) -> Tensor:
        """What one of the held experts makes of each row: [A, H], [A] -> [A, H]."""
        ones = torch.ones((len(rows), 1), dtype=torch.float32, device=rows.device)
        return self.ops.moe(rows, ones, experts[:, None], *self.experts)
