"""Scales and block formats, bit for bit against torch and torchao, and against what they promise."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.errors import InvalidRequestError
from miniserve.kernels.formats import (
    E4M3,
    E5M2,
    INT8,
    MXFP4,
    MXFP8,
    NVFP4,
    per_row,
    per_tensor,
    quantise,
    round_to,
)  # fmt: skip

MANY = settings(derandomize=True, deadline=None, max_examples=200)
SCHEMES = (NVFP4, MXFP8, MXFP4, per_row(E4M3), per_row(E5M2), per_row(INT8), per_tensor(E4M3))
by_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)


def matrix(rows=64, columns=16384, seed=0):
    """A million numbers whose magnitude differs from place to place by a few octaves, some blocks all zero."""
    generator = torch.Generator().manual_seed(seed)
    octaves = torch.rand(rows, columns // 32, 1, generator=generator) * 6 - 3
    x = torch.randn(rows, columns // 32, 32, generator=generator) * octaves.exp2()
    x[3, 5] = 0
    return x.flatten(1)


@by_scheme
def test_quantised_numbers_and_scales_are_as_stated(scheme):
    x = matrix(32, 1024)
    q = quantise(x, scheme)
    assert set(q.elements.unique().tolist()) <= set(scheme.element.values().tolist())
    assert q.scales.shape == {"tensor": (1, 1), "row": (32, 1)}.get(
        scheme.shared_by, (32, 1024 // 16 if scheme is NVFP4 else 32)
    )
    assert q.dequantise().shape == x.shape
    if scheme.scale == "e8m0":
        assert torch.equal(q.scales.log2(), q.scales.log2().round())
    if scheme.scale == "e4m3":
        assert torch.equal(round_to(q.scales, E4M3), q.scales)
        assert q.scales.max() == E4M3.max
    else:
        assert q.tensor_scale == 1


@by_scheme
def test_an_error_is_at_most_half_a_step_of_its_group(scheme):
    """The step at the top of a group is epsilon of its largest number, but where that one saturates (MX) or a scale is
    rounded (NVFP4): there it is a quarter of the largest for MX, and 2^-4 more for NVFP4."""
    x = matrix(32, 1024)
    error = (quantise(x, scheme).dequantise() - x).abs()
    size = scheme.shared_by if isinstance(scheme.shared_by, int) else x.shape[1]
    largest = x.abs().unflatten(-1, (-1, size)).amax(-1, keepdim=True)
    largest = largest.amax() if scheme.shared_by == "tensor" else largest
    step = scheme.element.epsilon if scheme.element.exponent_bits else 1 / 127
    bound = {"float32": step / 2, "e8m0": 0.25, "e4m3": step / 2 * (1 + 2**-4) + 2**-4}[scheme.scale]
    assert (error.unflatten(-1, (-1, size)) <= largest * bound * 1.0001).all()
    assert error.max() > 0


def test_rows_and_tensors_against_torchs_own_cast():
    x = matrix()
    for scheme, dims in ((per_row(E4M3), (-1,)), (per_tensor(E4M3), (0, 1))):
        scale = x.abs().amax(dims, keepdim=True) / 448
        expected = (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
        q = quantise(x, scheme)
        assert torch.equal(q.elements, expected.float())
        assert torch.equal(q.dequantise(), expected.float() * scale)


@pytest.mark.parametrize("name", ["MXFP8", "MXFP4"])
def test_mx_equals_torchao(name):
    pytest.importorskip("torchao", reason="torchao is not installed: pip install --no-deps torchao")
    from torchao.prototype.mx_formats.mx_tensor import MXTensor

    scheme, element = {"MXFP8": (MXFP8, torch.float8_e4m3fn), "MXFP4": (MXFP4, torch.float4_e2m1fn_x2)}[name]
    x = matrix()
    theirs = MXTensor.to_mx(x, element, 32)
    ours = quantise(x, scheme)
    assert x.numel() > 1_000_000
    real = ours.scales > 2.0**-126  # theirs never goes below that; ours does, where a block is all zero
    assert torch.equal(ours.scales[real], theirs.scale.float()[real])
    assert torch.equal(ours.dequantise(), theirs.dequantize(torch.float32))


def test_nvfp4_equals_torchao():
    pytest.importorskip("torchao", reason="torchao is not installed: pip install --no-deps torchao")
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    x = matrix()
    theirs = NVFP4Tensor.to_nvfp4(x, per_tensor_scale=per_tensor_amax_to_scale(x.abs().amax()))
    ours = quantise(x, NVFP4)
    assert ours.tensor_scale == theirs.per_tensor_scale
    # theirs keeps scales at or above E4M3's smallest normal number; ours uses its subnormals too
    assert torch.equal(ours.scales.clamp(min=E4M3.smallest_normal), theirs.scale.float().view_as(ours.scales))
    usual = (ours.scales >= E4M3.smallest_normal).repeat_interleave(16, 1)
    assert usual.float().mean() > 0.99
    assert torch.equal(ours.dequantise()[usual], theirs.dequantize(torch.float32)[usual])


@MANY
@given(scheme=st.sampled_from(SCHEMES), seed=st.integers(0, 999), octave=st.integers(-90, 90))
def test_quantising_again_changes_nothing_and_octaves_do_not_matter(scheme, seed, octave):
    """Powers of two move through every scheme but NVFP4's tensor scale untouched; and what has been rounded once is
    among the values that its own scales reach."""
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed))
    once = quantise(x, scheme).dequantise()
    assert torch.equal(quantise(x * 2.0**octave, scheme).dequantise(), once * 2.0**octave)
    twice = quantise(once, scheme).dequantise()
    assert (twice - once).abs().max() <= 1e-6 * once.abs().max()


@by_scheme
def test_zeros_and_the_smallest_and_largest_numbers(scheme):
    for fill in (0.0, 1e-44, -1e-30, 3.4e38):
        got = quantise(torch.full((2, 32), fill), scheme).dequantise()
        assert got.isfinite().all()
        if abs(fill) > 1e-27 or fill == 0:
            assert (got - fill).abs().max() <= abs(fill) * 0.25


def test_bits_in_memory():
    x = torch.randn(64, 128)
    assert {s.name: quantise(x, s).bits / x.numel() for s in SCHEMES} == {
        "NVFP4": 4 + 8 / 16 + 32 / x.numel(), "MXFP8": 8 + 8 / 32, "MXFP4": 4 + 8 / 32, "E4M3 row": 8 + 32 / 128,
        "E5M2 row": 8 + 32 / 128, "INT8 row": 8 + 32 / 128, "E4M3 tensor": 8 + 32 / x.numel(),
    }  # fmt: skip


def test_bad_input_is_named():
    with pytest.raises(InvalidRequestError, match=r"among 16: a last axis of 24"):
        quantise(torch.ones(2, 24), NVFP4)
    for bad in (math.nan, math.inf):
        with pytest.raises(InvalidRequestError, match="NaNs or infinities"):
            quantise(torch.tensor([1.0, bad]), per_row(E4M3))
    for bad in (torch.ones(()), torch.ones(2, 0), torch.ones(2, dtype=torch.int32)):
        with pytest.raises(InvalidRequestError, match="quantise"):
            quantise(bad, per_row(E4M3))
