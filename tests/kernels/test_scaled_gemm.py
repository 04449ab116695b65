"""Products of 8 bits with row scales, against float64; on a GPU its own instructions against the emulation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.errors import InvalidRequestError
from miniserve.kernels.formats import BF16, E4M3, E5M2, INT8
from miniserve.kernels.scaled_gemm import (
    LONGEST_INT8_ROW,
    Rows,
    fp8_gemm,
    has_fp8_gemm,
    int8_gemm,
    quantise_rows,
    reference,
)  # fmt: skip

EXACT = settings(derandomize=True, deadline=None, max_examples=30)
PRODUCTS = {E4M3: fp8_gemm, INT8: int8_gemm}
both = pytest.mark.parametrize("fmt", PRODUCTS, ids=lambda fmt: fmt.name)


def draw(*shape, seed=0, spread=2.0):
    """Rows of quite different magnitudes."""
    generator = torch.Generator().manual_seed(seed)
    rows = (torch.randn(shape[0], 1, generator=generator) * spread).exp2()
    return torch.randn(*shape, generator=generator) * rows


def pair(tokens, outputs, inner, fmt, seed=0, device="cpu"):
    x, weight = draw(tokens, inner, seed=seed), draw(outputs, inner, seed=seed + 1)
    return [Rows(*(part.to(device) for part in quantise_rows(each, fmt))) for each in (x, weight)]


@both
def test_rows_stand_for_what_they_were(fmt):
    x = draw(9, 64)
    x[4] = 0
    rows = quantise_rows(x, fmt)
    assert rows.data.dtype == {"E4M3": torch.float8_e4m3fn, "INT8": torch.int8}[fmt.name]
    assert rows.data.shape == (9, 64)
    assert rows.scales.shape == (9, 1)
    assert torch.equal(rows.data.float().abs().amax(1), torch.where(x.abs().amax(1) > 0, fmt.max, 0.0))
    error = (rows.data.float() * rows.scales - x).abs()
    step = 2**-3 if fmt is E4M3 else 1 / 127
    assert (error <= x.abs().amax(1, keepdim=True) * step / 2 * 1.0001).all()


@EXACT
@given(tokens=st.integers(1, 40), outputs=st.integers(1, 40), inner=st.integers(1, 70), seed=st.integers(0, 99))
def test_the_product_is_the_references(tokens, outputs, inner, seed):
    for fmt, product in PRODUCTS.items():
        x, weight = pair(tokens, outputs, inner, fmt, seed)
        expected = reference(x, weight)
        size = reference(Rows(x.data.float().abs(), x.scales), Rows(weight.data.float().abs(), weight.scales))
        got = product(x, weight, torch.float32)
        assert got.shape == (tokens, outputs)
        assert got.dtype == torch.float32
        assert ((got - expected).abs() <= size * 1e-6).all()
        narrow = product(x, weight)
        assert narrow.dtype == torch.bfloat16
        assert ((narrow - expected).abs() <= expected.abs() * 2**-8 + size * 1e-6).all()


def test_int8_sums_are_exact_where_float32_would_not_be():
    columns = 4096
    left, right = torch.full((1, columns), 127, dtype=torch.int8), torch.full((1, columns), 127, dtype=torch.int8)
    left[0, -1], right[0, -1] = 1, 1
    exact = (columns - 1) * 127**2 + 1  # beyond 2^24 and odd: no float32
    one = torch.ones(1, 1)
    assert exact > 2**24
    assert int8_gemm(Rows(left, one), Rows(right, one), torch.float32).item() == torch.tensor(exact).float().item()
    swapped = right.clone()
    swapped[0, 0] = 126  # a difference of one product, 127: float32 sums may lose it, the exact one does not
    difference = int8_gemm(Rows(left, one), Rows(torch.cat((right, swapped)), torch.ones(2, 1)), torch.float32).diff()
    assert abs(difference.item() + 127) <= 4  # the two results are float32 themselves


@both
def test_the_error_of_a_gaussian_product_is_that_of_the_format(fmt):
    """1.1e-2 and 3.7e-2 for K = 1024: rounding errors of both operands, independent of each other."""
    x, weight = torch.randn(64, 1024), draw(96, 1024, seed=3, spread=0)
    exact = x.double() @ weight.double().T
    got = PRODUCTS[fmt](quantise_rows(x, fmt), quantise_rows(weight, fmt), torch.float32)
    error = ((got - exact).norm() / exact.norm()).item()
    assert error == pytest.approx(1.1e-2 if fmt is INT8 else 3.7e-2, rel=0.1)


@both
def test_bad_input_is_named(fmt):
    product = PRODUCTS[fmt]
    x, weight = pair(3, 5, 32, fmt)
    with pytest.raises(InvalidRequestError, match="x has rows of 32, the weight has rows of 16"):
        product(x, Rows(weight.data[:, :16], weight.scales))
    with pytest.raises(InvalidRequestError, match=r"weight has scales \[4, 1\]"):
        product(x, Rows(weight.data, weight.scales[1:]))
    with pytest.raises(InvalidRequestError, match=r"x has scales .* of torch.float64"):
        product(Rows(x.data, x.scales.double()), weight)
    with pytest.raises(InvalidRequestError, match=r"x is \[3, 32\] of torch.float32"):
        product(Rows(x.data.float(), x.scales), weight)
    with pytest.raises(InvalidRequestError, match=r"x is \[0, 32\]"):
        product(Rows(x.data[:0], x.scales[:0]), weight)
    for bad in ((torch.ones(2, 2, 2), fmt), (torch.ones(2, 2), E5M2), (torch.ones(2, 2), BF16)):
        with pytest.raises(InvalidRequestError, match="E4M3 and INT8"):
            quantise_rows(*bad)


def test_a_row_too_long_for_32_bits_is_refused():
    data, scale = torch.full((1, LONGEST_INT8_ROW + 1), 127, dtype=torch.int8), torch.ones(1, 1)
    assert LONGEST_INT8_ROW * 127**2 <= 2**31 - 1 < (LONGEST_INT8_ROW + 1) * 127**2
    longest = Rows(data[:, :-1], scale)
    assert int8_gemm(longest, longest, torch.float32).item() == pytest.approx(LONGEST_INT8_ROW * 127**2)
    with pytest.raises(InvalidRequestError, match=f"beyond {LONGEST_INT8_ROW} a sum may overflow"):
        int8_gemm(Rows(data, scale), Rows(data, scale))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@both
@pytest.mark.parametrize(
    ("tokens", "outputs", "inner"), [(1, 64, 128), (16, 64, 128), (17, 64, 128), (300, 512, 1024), (33, 72, 40)]
)
def test_a_gpus_own_product_is_the_emulated_one(fmt, tokens, outputs, inner):
    if fmt is E4M3 and not has_fp8_gemm(torch.device("cuda")):
        pytest.skip("needs compute capability 8.9")
    x, weight = pair(tokens, outputs, inner, fmt, device="cuda")
    expected = reference(x, weight)
    size = reference(Rows(x.data.float().abs(), x.scales), Rows(weight.data.float().abs(), weight.scales))
    # FP8 tensor cores keep fewer bits than float32 while they add up: Hopper's about 14.
    slack = 1e-6 if fmt is INT8 else 2**-13
    got = PRODUCTS[fmt](x, weight)
    assert got.is_cuda
    assert ((got - expected).abs() <= expected.abs() * 2**-8 + size * slack).all()
