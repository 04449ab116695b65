"""Products with few rows against float64: every form of W, sizes that fill no tile, rows that lie apart."""

import pytest
import torch

from miniserve.kernels.triton.few_rows import few_rows_linear


@pytest.mark.parametrize("rows", [1, 2, 5, 8, 11, 16])
@pytest.mark.parametrize(("outputs", "depth"), [(64, 128), (37, 96), (8, 40)])
@pytest.mark.parametrize("form", ["bfloat16", "float16", "e4m3"])
def test_equals_float64(device, rows, outputs, depth, form):
    generator = torch.Generator().manual_seed(rows + outputs)
    dtype = torch.float16 if form == "float16" else torch.bfloat16
    x = torch.randn(rows, 2 * depth, generator=generator).to(device, dtype)[:, :depth]
    bias = torch.randn(outputs, generator=generator).to(device, dtype) if rows == 5 else None
    weight = torch.randn(outputs, depth, generator=generator).to(device)
    scales = None
    if form == "e4m3":
        scales = weight.abs().amax(-1, keepdim=True) / 448
        weight = (weight / scales).to(torch.float8_e4m3fn)
        dense = weight.double() * scales.double()
    else:
        weight = weight.to(dtype)
        dense = weight.double()
    expected = x.double() @ dense.T + (0 if bias is None else bias.double())
    found = few_rows_linear(x, weight, scales, bias)
    assert found.dtype is dtype
    assert (found.double() - expected).norm() / expected.norm() < (1e-3 if form == "float16" else 4e-3)
