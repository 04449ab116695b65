"""Products with few rows against float64: every form of W, sizes that fill no tile, rows that lie apart."""

import pytest
import torch

from miniserve.kernels.linear_weight import LinearWeight
from miniserve.kernels.triton import ops
from miniserve.kernels.triton.few_rows import few_rows_linear


@pytest.mark.parametrize("rows", [1, 2, 5, 8, 11, 16])
@pytest.mark.parametrize(("outputs", "depth"), [(64, 128), (37, 96), (8, 40)])
@pytest.mark.parametrize("form", ["bfloat16", "float16", "e4m3", "int8"])
def test_equals_float64(device, rows, outputs, depth, form):
    generator = torch.Generator().manual_seed(rows + outputs)
    dtype = torch.float16 if form == "float16" else torch.bfloat16
    x = torch.randn(rows, 2 * depth, generator=generator).to(device, dtype)[:, :depth]
    bias = torch.randn(outputs, generator=generator).to(device, dtype) if rows == 5 else None
    weight = torch.randn(outputs, depth, generator=generator).to(device)
    scales = None
    if form in ("e4m3", "int8"):
        scales = weight.abs().amax(-1, keepdim=True) / (448 if form == "e4m3" else 127)
        weight = (weight / scales).to(torch.float8_e4m3fn if form == "e4m3" else torch.int8)
        dense = weight.double() * scales.double()
    else:
        weight = weight.to(dtype)
        dense = weight.double()
    expected = x.double() @ dense.T + (0 if bias is None else bias.double())
    found = few_rows_linear(x, weight, scales, bias)
    assert found.dtype is dtype
    assert (found.double() - expected).norm() / expected.norm() < (1e-3 if form == "float16" else 4e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [1, 16, 17, 64, 65, 200, 256, 257])
def test_int8_weights_count_as_they_are_with_any_number_of_rows(device, rows, dtype):
    """Activations are not rounded, one of them is an outlier: the error is that of the type, in every tile and beyond."""
    generator = torch.Generator().manual_seed(rows)
    codes = torch.randint(-127, 128, (48, 128), generator=generator, dtype=torch.int8).to(device)
    scales = (torch.rand(48, 1, generator=generator) * 0.01 + 1e-3).to(device)
    x, bias = torch.randn(rows, 128, generator=generator), torch.randn(48, generator=generator).to(device, dtype)
    x[:, 5] *= 1000
    x = x.to(device, dtype)
    found = ops.linear(x, LinearWeight(codes, scales, bias))
    expected = x.double() @ (codes.double() * scales.double()).T + bias.double()
    assert found.dtype is dtype
    assert (found.double() - expected).norm() / expected.norm() < (4e-3 if dtype is torch.bfloat16 else 1e-5)
