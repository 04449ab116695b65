"""y = x Wᵀ for few rows of x: what a decode step multiplies, bound by the reading of W alone.

A library's product is made for many rows: it cuts W into tiles so wide that a small W keeps half of the chip idle. Here
a program takes a few of W's rows in their whole length, so that there are programs for all multiprocessors, and what
it loads next is on its way while it multiplies. W is bfloat16, float16, or E4M3 or INT8 with a float32 scale a row,
which halves the bytes; these are widened on the way, x stays as it is, and sums are float32.

How many rows are few depends on what else there is. For W of 16 bits that is cuBLAS, and for E4M3 the tensor cores' own
8-bit product (`scaled_gemm`), which rounds x as well: either is better from 17 rows on. INT8 has no such product of
which tokens would not suffer, and is multiplied here up to 256 rows, in tiles of 64 or 128.
"""

# ruff: noqa: ANN001, ANN201, N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from miniserve.kernels.triton.configs import FewRowsConfig, capability, few_rows_config
from miniserve.kernels.triton.widen import widened

TILES = (1, 16, 64, 128)  # rows of x: 1 without tensor cores; above 16 for W of 8 bits alone
MOST_ROWS, MOST_INT8_ROWS = 16, 256


@triton.jit(do_not_specialize=["num_rows", "N"])  # one compilation for all batches
def few_rows_kernel(
    x_ptr, w_ptr, scale_ptr, bias_ptr, out_ptr, num_rows, N, stride_x,
    SCALED: tl.constexpr, BIASED: tl.constexpr, K: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """COLUMNS outputs of ROWS rows; ROWS: of `TILES`. Grid: (N / COLUMNS · num_rows / ROWS,).

    Tiles of rows that need the same part of W are neighbours: they run together, and it comes from memory once.
    """
    row_tiles = tl.cdiv(num_rows, ROWS)
    columns = tl.program_id(0) // row_tiles * COLUMNS + tl.arange(0, COLUMNS)
    rows = tl.program_id(0) % row_tiles * ROWS + tl.arange(0, ROWS)
    depth = tl.arange(0, DEPTH)
    is_row, is_column = rows < num_rows, columns < N
    w_at = w_ptr + columns.to(tl.int64)[:, None] * K + depth[None, :]
    if ROWS == 1:
        products = tl.zeros((COLUMNS, DEPTH), tl.float32)
        for start in range(0, K, DEPTH):
            inside = depth < K - start
            x = tl.load(x_ptr + start + depth, mask=inside, other=0.0).to(tl.float32)
            w = tl.load(w_at + start, mask=is_column[:, None] & inside[None, :], other=0.0)
            products += w.to(tl.float32) * x[None, :]
        total = tl.sum(products, 1)[:, None]
    else:
        total = tl.zeros((COLUMNS, ROWS), tl.float32)
        x_at = x_ptr + rows[None, :].to(tl.int64) * stride_x + depth[:, None]
        for start in range(0, K, DEPTH):
            inside = depth < K - start
            x = tl.load(x_at + start, mask=inside[:, None] & is_row[None, :], other=0.0)
            w = tl.load(w_at + start, mask=is_column[:, None] & inside[None, :], other=0.0)
            total = tl.dot(widened(w, x.dtype), x, total)
    if SCALED:
        total *= tl.load(scale_ptr + columns, mask=is_column, other=0.0)[:, None]
    if BIASED:
        total += tl.load(bias_ptr + columns, mask=is_column, other=0.0).to(tl.float32)[:, None]
    out_at = out_ptr + rows[None, :].to(tl.int64) * N + columns[:, None]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=is_column[:, None] & is_row[None, :])


def few_rows_linear(
    x: Tensor,
    weight: Tensor,
    scales: Tensor | None = None,
    bias: Tensor | None = None,
    config: FewRowsConfig | None = None,
) -> Tensor:
    """y = x Wᵀ + b.

    Args:
        x: [T, K] bfloat16 or float16, rows side by side or apart, each contiguous; T at most 16, or with scales any.
        weight: [N, K], contiguous, of x's dtype; or float8_e4m3fn or int8, then with scales.
        scales: [N] or [N, 1] float32.
        bias: [N].
        config: tiles; None: those of the table.

    Returns:
        [T, N] in x's dtype.
    """
    (count, depth), outputs = x.shape, len(weight)
    rows = next((tile for tile in TILES if tile >= count), TILES[-1])
    config = config or few_rows_config(capability(x.device), rows=rows, eight_bits=scales is not None)
    out = torch.empty(count, outputs, dtype=x.dtype, device=x.device)
    few_rows_kernel[(triton.cdiv(outputs, config.columns) * triton.cdiv(count, rows),)](
        x, weight, scales, bias, out, count, outputs, x.stride(0),
        SCALED=scales is not None, BIASED=bias is not None, K=depth, ROWS=rows,
        COLUMNS=config.columns, DEPTH=config.depth, num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    return out
