"""The mixture of experts for a token or two, bound by the reading of the chosen experts' weights alone.

So few tokens share hardly an expert: nothing is sorted, and no tensor cores are needed. A program takes one row of the
weights, as in `few_rows`, so that there are programs for all multiprocessors: of each chosen expert's gate and up
first, then of its down, where a program adds up what all of a token's experts answer. An expert id outside [0, E) is
padding.
"""

# ruff: noqa: ANN001, ANN201, N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from typing import NamedTuple, Self

import triton
import triton.language as tl
from torch import Tensor

from miniserve.kernels.expert_stack import ExpertStack

MOST_TOKENS = 2
ELEMENTS = 2048  # of the weights that a program reads at a time


class Matrices(NamedTuple):
    """A stack as the kernels take it: data [E, N, K], and scales [E · N, 1] float32 of E4M3 or INT8."""

    data: Tensor
    scales: Tensor | None

    @classmethod
    def of(cls, experts: Tensor | ExpertStack) -> Self:
        """Nothing is copied."""
        if isinstance(experts, Tensor):
            return cls(experts, None)
        return cls(experts.matrix.data.view(experts.shape), experts.matrix.scales)


@triton.jit
def gated_row_kernel(
    x_ptr, w_ptr, scale_ptr, expert_ptr, out_ptr, stride_x, stride_expert, stride_row, SCALED: tl.constexpr,
    CHOICES: tl.constexpr, E: tl.constexpr, N: tl.constexpr, K: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """SiLU(gate) · up of one assignment and column. Grid: (N, T · CHOICES). w is [E, 2 N, K], out [T · CHOICES, N]."""
    column, assignment = tl.program_id(0), tl.program_id(1)
    expert = tl.load(expert_ptr + assignment).to(tl.int64)
    if (expert < 0) | (expert >= E):
        return
    depth = tl.arange(0, DEPTH)
    x_at = x_ptr + assignment // CHOICES * stride_x + depth
    w_at = w_ptr + expert * stride_expert + column * stride_row + depth
    gates = tl.zeros((DEPTH,), tl.float32)
    ups = tl.zeros((DEPTH,), tl.float32)
    for start in range(0, K, DEPTH):
        inside = depth < K - start
        x = tl.load(x_at + start, mask=inside, other=0.0).to(tl.float32)
        gates += x * tl.load(w_at + start, mask=inside, other=0.0).to(tl.float32)
        ups += x * tl.load(w_at + N * stride_row + start, mask=inside, other=0.0).to(tl.float32)
    kind = out_ptr.dtype.element_ty  # rounded where the reference rounds
    gate, up = tl.sum(gates, 0), tl.sum(ups, 0)
    if SCALED:
        gate *= tl.load(scale_ptr + expert * 2 * N + column)
        up *= tl.load(scale_ptr + expert * 2 * N + N + column)
    gate, up = gate.to(kind).to(tl.float32), up.to(kind).to(tl.float32)
    active = (gate / (1.0 + tl.exp(-gate))).to(kind).to(tl.float32)
    tl.store(out_ptr + assignment * N + column, (active * up).to(kind))


@triton.jit
def down_row_kernel(
    x_ptr, w_ptr, scale_ptr, expert_ptr, weight_ptr, out_ptr, stride_expert, stride_row, SCALED: tl.constexpr,
    CHOICES: tl.constexpr, PADDED: tl.constexpr, E: tl.constexpr, K: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One column of a token's result. Grid: (N, T). x is [T · CHOICES, K], w [E, N, K], out [T, N]."""
    column, token = tl.program_id(0), tl.program_id(1)
    choices, depth = tl.arange(0, PADDED), tl.arange(0, DEPTH)
    assignments = token * CHOICES + choices
    experts = tl.load(expert_ptr + assignments, mask=choices < CHOICES, other=-1).to(tl.int64)
    answers = (experts >= 0) & (experts < E)
    shares = tl.load(weight_ptr + assignments, mask=answers, other=0.0).to(tl.float32)
    x_at = x_ptr + assignments[:, None] * K + depth[None, :]
    w_at = w_ptr + (experts * stride_expert + column * stride_row)[:, None] + depth[None, :]
    products = tl.zeros((PADDED, DEPTH), tl.float32)
    for start in range(0, K, DEPTH):
        inside = answers[:, None] & (depth < K - start)[None, :]
        x = tl.load(x_at + start, mask=inside, other=0.0).to(tl.float32)
        products += x * tl.load(w_at + start, mask=inside, other=0.0).to(tl.float32)
    if SCALED:
        shares *= tl.load(scale_ptr + experts * tl.num_programs(0) + column, mask=answers, other=0.0)
    total = tl.sum(tl.sum(products, 1) * shares, 0)
    tl.store(out_ptr + token * tl.num_programs(0) + column, total.to(out_ptr.dtype.element_ty))


def moe_few_tokens(x: Tensor, weights: Tensor, expert_ids: Tensor, widening: Matrices, narrowing: Matrices) -> Tensor:
    """`reference.moe`, with its arguments, all but x contiguous; x's rows are."""
    (gate_up, gate_up_scales), (down, down_scales) = widening, narrowing
    (tokens, hidden), choices, (experts, _, inner) = x.shape, expert_ids.shape[1], down.shape
    gated, out = x.new_empty(tokens * choices, inner), x.new_empty(tokens, hidden)
    padded = triton.next_power_of_2(choices)
    gated_row_kernel[(inner, tokens * choices)](
        x, gate_up, gate_up_scales, expert_ids, gated, x.stride(0), gate_up.stride(0), gate_up.stride(1),
        SCALED=gate_up_scales is not None,
        CHOICES=choices, E=experts, N=inner, K=hidden, DEPTH=min(ELEMENTS, triton.next_power_of_2(hidden)),
        num_warps=4, num_stages=3,
    )  # fmt: skip
    down_row_kernel[(hidden, tokens)](
        gated, down, down_scales, expert_ids, weights, out, down.stride(0), down.stride(1),
        SCALED=down_scales is not None, CHOICES=choices, PADDED=padded, E=experts, K=inner,
        DEPTH=min(max(1, ELEMENTS // padded), triton.next_power_of_2(inner)), num_warps=4, num_stages=3,
    )  # fmt: skip
    return out
