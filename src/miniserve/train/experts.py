"""A mixture over many tokens, forward and backward: they are sorted by expert, and each expert has one product.

It computes what `reference.moe` does. That one takes one expert after the other out of all and adds its answers up in
place, so that the backward pass makes a gradient of the size of all experts' weights for each. Here rows are moved by
a permutation, whose gradient is the permutation back, and the experts' gradients are put together once.

Letters in shapes: T tokens, H hidden size, K experts per token, E experts, I their width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from miniserve.kernels import reference
from miniserve.kernels.linear_weight import LinearWeight


def moe(
    x: Tensor,
    weights: Tensor,
    expert_ids: Tensor,
    gate_up: Tensor,
    down: Tensor,
    *,
    linear: Callable[[Tensor, LinearWeight], Tensor] = reference.linear,
) -> Tensor:
    """As `reference.moe`, differentiable, but for padding, of which training has none: ids are in [0, E).

    Args:
        x: [T, H].
        weights, expert_ids: [T, K].
        gate_up: [E, 2·I, H].
        down: [E, H, I].
        linear: the product.

    Returns:
        [T, H] in the dtype of the experts' answers.
    """
    choices = expert_ids.flatten()
    order = choices.argsort(stable=True)
    back = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
    counts = torch.bincount(choices, minlength=len(down)).tolist()

    def each(rows: Tensor, matrices: Tensor) -> Tensor:
        parts = zip(torch.split(rows, counts), matrices.unbind(), strict=True)
        return torch.cat([linear(part, LinearWeight(matrix)) for part, matrix in parts])

    rows: Tensor = _ToExperts.apply(x, order, back)  # type: ignore[no-untyped-call]
    answers: Tensor = _ToTokens.apply(each(reference.silu_mul(each(rows, gate_up)), down), order, back)  # type: ignore[no-untyped-call]
    return (answers.view(*expert_ids.shape, -1) * weights[..., None].to(answers.dtype)).sum(1)


class _ToExperts(Function):
    """[T, H] -> [T · K, H], a token's row for each of its choices, sorted by expert."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        ctx.tokens = len(x)
        return x.index_select(0, order // (len(order) // len(x)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        rows = gradients[0].index_select(0, back)
        return rows.view(ctx.tokens, -1, rows.shape[1]).sum(1), None, None


class _ToTokens(Function):
    """[T · K, H], sorted by expert -> the same rows, a token's beside each other."""

    @staticmethod
    def forward(ctx: Any, answers: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return answers.index_select(0, back)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (order,) = ctx.saved_tensors
        return gradients[0].index_select(0, order), None, None
