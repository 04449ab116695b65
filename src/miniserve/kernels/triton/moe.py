"""`moe`: two grouped products over tokens sorted by expert, without asking the device how many each expert got.

`sort_kernel` writes the assignments (token · K + choice) in the order of their experts, and where each expert's begin.
`product_kernel` gives every tile of rows to one expert: a tile finds its own from those beginnings, and the grid has as
many tiles as there can be at most. An expert id outside [0, E) is padding: it is sorted nowhere, and adds nothing.
"""

# ruff: noqa: ANN001, ANN201, N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from miniserve.kernels.expert_stack import ExpertStack
from miniserve.kernels.triton.configs import GemmConfig, capability, gemm_config
from miniserve.kernels.triton.moe_few_tokens import MOST_TOKENS, Matrices, moe_few_tokens
from miniserve.kernels.triton.widen import widened

FEW, MANY = 1024, 8192  # assignments that `sort_kernel` reads at a time: of so few, of more
COLUMNS = 1024  # that `sum_kernel` adds at a time


@triton.jit(do_not_specialize=["num"])
def sort_kernel(expert_ptr, order_ptr, begin_ptr, num, SCAN: tl.constexpr):
    """One expert's assignments, in their order, to order [T·K] from begin[expert] on. Grid: (E,)."""
    expert = tl.program_id(0)
    smaller, mine = 0, 0
    for start in range(0, num, SCAN):
        ids = tl.load(expert_ptr + start + tl.arange(0, SCAN), mask=start + tl.arange(0, SCAN) < num, other=-1)
        smaller += tl.sum(((ids >= 0) & (ids < expert)).to(tl.int32), 0)
        mine += tl.sum((ids == expert).to(tl.int32), 0)
    tl.store(begin_ptr + expert, smaller)
    if expert == tl.num_programs(0) - 1:
        tl.store(begin_ptr + expert + 1, smaller + mine)
    if mine > 0:
        for start in range(0, num, SCAN):
            at = start + tl.arange(0, SCAN)
            hit = tl.load(expert_ptr + at, mask=at < num, other=-1) == expert
            place = smaller + tl.cumsum(hit.to(tl.int32), 0) - 1
            tl.store(order_ptr + place, at, mask=hit)
            smaller += tl.sum(hit.to(tl.int32), 0)


@triton.jit
def product_kernel(
    x_ptr, w_ptr, scale_ptr, out_ptr, order_ptr, begin_ptr, stride_x, stride_expert, stride_row, stride_out,
    DIVISOR: tl.constexpr, GATED: tl.constexpr, SCALED: tl.constexpr, E: tl.constexpr, EXPERTS: tl.constexpr,
    N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """ROWS assignments of one expert times COLUMNS of its outputs. Grid: (N / COLUMNS, most tiles).

    x's row of assignment a is a // DIVISOR; out's is a. w is [E, N, K]; GATED: [E, 2 N, K], and SiLU(first N) · second.
    SCALED: each of w's rows has one, scale [E, N] or [E, 2 N].
    """
    tile, columns = tl.program_id(1), tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    experts = tl.arange(0, EXPERTS)
    begins = tl.load(begin_ptr + experts, mask=experts < E, other=0)
    ends = tl.load(begin_ptr + experts + 1, mask=experts < E, other=0)
    tiles = tl.cdiv(ends - begins, ROWS)
    last = tl.cumsum(tiles, 0)
    expert = tl.sum((last <= tile).to(tl.int32), 0)
    if expert >= E:
        return
    chosen = experts == expert
    first = tl.sum(tl.where(chosen, begins + (tile - last + tiles) * ROWS, 0), 0)
    end = tl.sum(tl.where(chosen, ends, 0), 0)
    rows = first + tl.arange(0, ROWS)
    assignments = tl.load(order_ptr + rows, mask=rows < end, other=0).to(tl.int64)
    is_row, is_column = (rows < end)[:, None], (columns < N)[:, None]
    depths = tl.arange(0, DEPTH)
    x_at = x_ptr + (assignments // DIVISOR)[:, None] * stride_x + depths[None, :]
    w_at = w_ptr + expert.to(tl.int64) * stride_expert + columns.to(tl.int64)[:, None] * stride_row + depths[None, :]
    acc = tl.zeros([ROWS, COLUMNS], tl.float32)
    acc_up = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in tl.range(0, K, DEPTH):
        if K % DEPTH == 0:
            x_mask, w_mask = is_row, is_column
        else:
            inside = (start + depths < K)[None, :]
            x_mask, w_mask = is_row & inside, is_column & inside
        x = tl.load(x_at + start, mask=x_mask, other=0.0)
        w = tl.load(w_at + start, mask=w_mask, other=0.0)
        acc = tl.dot(x, tl.trans(widened(w, x.dtype)), acc, input_precision="ieee")
        if GATED:
            up = tl.load(w_at + N * stride_row + start, mask=w_mask, other=0.0)
            acc_up = tl.dot(x, tl.trans(widened(up, x.dtype)), acc_up, input_precision="ieee")
    if SCALED:
        scale_at = scale_ptr + expert * (2 * N if GATED else N) + columns
        acc *= tl.load(scale_at, mask=columns < N, other=0.0)[None, :]
        if GATED:
            acc_up *= tl.load(scale_at + N, mask=columns < N, other=0.0)[None, :]
    y = acc.to(out_ptr.dtype.element_ty)
    if GATED:
        gate = y.to(tl.float32)
        active = (gate / (1.0 + tl.exp(-gate))).to(y.dtype)
        y = (active.to(tl.float32) * acc_up.to(y.dtype).to(tl.float32)).to(y.dtype)
    tl.store(out_ptr + assignments[:, None] * stride_out + columns[None, :], y, mask=is_row & (columns < N)[None, :])


@triton.jit
def sum_kernel(
    y_ptr, weight_ptr, expert_ptr, out_ptr, H, E: tl.constexpr, CHOICES: tl.constexpr, COLUMNS: tl.constexpr
):
    """A token's answers, weighted and added up in float32. Grid: (T, H / COLUMNS)."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], tl.float32)
    for choice in tl.static_range(CHOICES):
        at = token * CHOICES + choice
        expert = tl.load(expert_ptr + at)
        answered = (columns < H) & (expert >= 0) & (expert < E)
        total += tl.load(y_ptr + at * H + columns, mask=answered, other=0.0).to(tl.float32) * tl.load(weight_ptr + at)
    tl.store(out_ptr + token * H + columns, total.to(out_ptr.dtype.element_ty), mask=columns < H)


def moe(
    x: Tensor,
    weights: Tensor,
    expert_ids: Tensor,
    gate_up: Tensor | ExpertStack,
    down: Tensor | ExpertStack,
    *,
    config: GemmConfig | None = None,
) -> Tensor:
    """`reference.moe`, with its arguments; `config`: sort whatever there is, and use other tiles than `configs`'.

    Stacks may be x's dtype, or E4M3 or INT8 with a scale a row.
    """
    widening, narrowing = Matrices.of(gate_up), Matrices.of(down)
    (tokens, hidden), choices, (experts, inner) = x.shape, expert_ids.shape[1], narrowing.data.shape[::2]
    if tokens == 0:
        return torch.empty_like(x)
    x = x if x.stride(-1) == 1 else x.contiguous()
    expert_ids, weights = expert_ids.contiguous(), weights.contiguous()
    if tokens <= MOST_TOKENS and config is None:
        return moe_few_tokens(x, weights, expert_ids, widening, narrowing)
    num, out = tokens * choices, x.new_empty(tokens, hidden)
    eight_bits = widening.scales is not None
    config = config or gemm_config(capability(x.device), num, experts, x.element_size(), eight_bits=eight_bits)
    order = torch.empty(num, dtype=torch.int32, device=x.device)
    begins = torch.empty(experts + 1, dtype=torch.int32, device=x.device)
    scan, warps = (FEW, 4) if num <= FEW else (MANY, 8)
    sort_kernel[(experts,)](expert_ids, order, begins, num, SCAN=scan, num_warps=warps)
    sorted_list = order, begins, experts, config
    gated, answers = x.new_empty(num, inner), x.new_empty(num, hidden)
    _product(x, widening, gated, choices, True, *sorted_list)
    _product(gated, narrowing, answers, 1, False, *sorted_list)
    sum_kernel[(tokens, triton.cdiv(hidden, COLUMNS))](
        answers, weights, expert_ids, out, hidden, E=experts, CHOICES=choices, COLUMNS=COLUMNS, num_warps=4
    )
    return out


def _product(
    x: Tensor,
    matrices: Matrices,
    out: Tensor,
    divisor: int,
    gated: bool,
    order: Tensor,
    begins: Tensor,
    experts: int,
    config: GemmConfig,
) -> None:
    (num, columns), (w, scales) = out.shape, matrices
    tiles = min(num, num // config.rows + experts)
    tile_columns = config.columns if gated else config.plain_columns
    product_kernel[(triton.cdiv(columns, tile_columns), tiles)](
        x, w, scales, out, order, begins, x.stride(0), w.stride(0), w.stride(1), out.stride(0),
        DIVISOR=divisor, GATED=gated, SCALED=scales is not None, E=experts,
        EXPERTS=triton.next_power_of_2(experts), N=columns, K=w.shape[2],
        ROWS=config.rows, COLUMNS=tile_columns, DEPTH=config.depth, num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
