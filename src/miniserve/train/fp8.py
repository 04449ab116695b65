"""A linear layer whose three products are of FP8: forward, and backward to the input and to the weight.

Every operand is E4M3 with a scale for each of its rows. A row here is what a product sums over, so each tensor is
rounded twice, along either axis: W's rows forward, its columns backward; the gradient's rows towards the input, its
columns towards the weight. With scales that fine, gradients do not need the range of E5M2 (DeepSeek-V3, arXiv
2412.19437, section 3.3.2, uses E4M3 for all, with finer scales still). A GPU that has FP8 computes with it; elsewhere
`fp8_gemm` emulates it: the same rounding, no gain in speed.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from miniserve.kernels.formats import E4M3
from miniserve.kernels.scaled_gemm import fp8_gemm, quantise_rows


class _Fp8Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """x [T, K], weight [N, K] -> [T, N] bfloat16."""
        ctx.save_for_backward(x, weight)
        return _product(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """[T, N] -> [T, K] in x's dtype, [N, K] in the weight's."""
        (gradient,), (x, weight) = gradients, ctx.saved_tensors
        towards_x = _product(gradient, weight.T).to(x.dtype)
        return towards_x, _product(gradient.T, x.T).to(weight.dtype)


def fp8_linear(x: Tensor, weight: Tensor) -> Tensor:
    """y = x Wᵀ in FP8, differentiable. x [..., K] and weight [N, K], floats -> [..., N] bfloat16."""
    rows = x.reshape(-1, x.shape[-1])
    if not len(rows):  # an expert that nobody goes to
        return rows.new_zeros(*x.shape[:-1], len(weight), dtype=torch.bfloat16)
    y: Tensor = _Fp8Linear.apply(rows, weight)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], -1)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """[R, K] · [C, K]ᵀ -> [R, C] bfloat16."""
    rows, columns = (quantise_rows(each.contiguous(), E4M3) for each in (a, b))
    return fp8_gemm(rows, columns, torch.bfloat16)
