"""Mixtures of experts on a CPU: `reference.route` and `reference.moe`, each as one call of the C++.

Invariants: a token's result has the same bits whatever its batch is, unless torch multiplies; its answers are added in
the order of its choices. What nobody chose is not read. Sums are float32.
"""

import ctypes

import torch
from torch import Tensor

from miniserve.kernels import reference
from miniserve.kernels.cpu.binding import functions
from miniserve.kernels.cpu.linear import KINDS, fits, linear, torch_is_faster
from miniserve.kernels.expert_stack import ExpertStack

_P, _N = ctypes.c_void_p, ctypes.c_int64


class _Stack(ctypes.Structure):
    _fields_ = (("kind", _N), ("data", _P), ("scales", _P))


class Experts(ctypes.Structure):
    """kernels.h's. It holds addresses: whoever makes it keeps the stacks."""

    _fields_ = (("gate_up", _Stack), ("down", _Stack), *((n, _N) for n in ("E", "K", "H", "I")))

    @classmethod
    def of(cls, gate_up: ExpertStack, down: ExpertStack, experts_per_token: int) -> "Experts":
        """Of stacks that `experts_fit`."""
        experts, hidden, inner = down.shape
        return cls(_stack(gate_up), _stack(down), experts, experts_per_token, hidden, inner)


def _stack(stack: ExpertStack) -> _Stack:
    data, scales = stack.matrix.data, stack.matrix.scales
    return _Stack(KINDS[data.dtype], data.data_ptr(), None if scales is None else scales.data_ptr())


def experts_fit(gate_up: ExpertStack, down: ExpertStack) -> bool:
    """Whether the C++ takes them."""
    return fits(gate_up.matrix) and fits(down.matrix)


def torch_is_faster_for(stack: ExpertStack, tokens: int, experts_per_token: int) -> bool:
    """Whether torch's products are, expert by expert, if tokens are spread evenly."""
    return torch_is_faster(stack.matrix, tokens * experts_per_token // stack.num_experts)


def route(router_logits: Tensor, experts_per_token: int, normalize: bool) -> tuple[Tensor, Tensor]:
    """`reference.route`, with its arguments; of equal scores the first is taken."""
    cpp, (tokens, experts) = functions(), router_logits.shape
    if cpp is None or router_logits.dtype is not torch.float32:
        return reference.route(router_logits, experts_per_token, normalize)
    scores = router_logits.contiguous()
    weights = scores.new_empty(tokens, experts_per_token)
    expert_ids = torch.empty(tokens, experts_per_token, dtype=torch.int64)
    pointers = (part.data_ptr() for part in (scores, weights, expert_ids))
    cpp.route(*pointers, tokens, experts, experts_per_token, normalize, torch.get_num_threads())
    return weights, expert_ids


def moe(
    x: Tensor,
    weights: Tensor,
    expert_ids: Tensor,
    gate_up: Tensor | ExpertStack,
    down: Tensor | ExpertStack,
) -> Tensor:
    """`reference.moe`, with its arguments.

    Raises:
        ValueError: the shapes do not fit together.
    """
    cpp, widening, narrowing = functions(), ExpertStack.of(gate_up), ExpertStack.of(down)
    (tokens, hidden), choices, (experts, _, inner) = x.shape, expert_ids.shape[1], narrowing.shape
    shapes = (experts, 2 * inner, hidden), (experts, hidden, inner), (tokens, choices), (tokens, choices)
    if (widening.shape, narrowing.shape, expert_ids.shape, weights.shape) != shapes:
        raise ValueError(
            f"x {list(x.shape)}, weights {list(weights.shape)} and ids {list(expert_ids.shape)} do not fit experts "
            f"{list(widening.shape)} and {list(narrowing.shape)}"
        )
    left_to_torch = torch_is_faster_for(widening, tokens, choices)
    if cpp is None or left_to_torch or not experts_fit(widening, narrowing):
        return reference.moe(x, weights, expert_ids, widening, narrowing, linear=linear)
    wide, weights, expert_ids = x.float().contiguous(), weights.float().contiguous(), expert_ids.long().contiguous()
    out, described = torch.empty_like(wide), Experts.of(widening, narrowing, choices)
    pointers = (part.data_ptr() for part in (wide, weights, expert_ids, out))
    cpp.moe(ctypes.byref(described), *pointers, None, tokens, torch.get_num_threads())
    return out.to(x.dtype)
