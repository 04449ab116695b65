"""Norms, SiLU and rotary embedding in Triton against the reference."""

import pytest
import torch

from miniserve.kernels import reference
from miniserve.kernels.triton import rowwise

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def draw(*shape, dtype, device, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def close(got, expected):
    """A unit or two in the last place: the reference rounds where these do."""
    assert got.dtype is expected.dtype
    torch.testing.assert_close(got, expected, rtol=2.5 * torch.finfo(got.dtype).eps, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 576), (7, 64), (200, 96), (3, 5, 128), (2, 2304)])
def test_rms_norm(dtype, shape, device):
    x, weight = draw(*shape, dtype=dtype, device=device) * 3, draw(shape[-1], dtype=dtype, device=device, seed=1)
    close(rowwise.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))


def test_rms_norm_of_rows_of_length_zero_sum_and_of_none(device):
    weight = draw(64, dtype=torch.bfloat16, device=device)
    assert not rowwise.rms_norm(torch.zeros(3, 64, dtype=torch.bfloat16, device=device), weight, 1e-5).any()
    assert rowwise.rms_norm(torch.zeros(0, 64, dtype=torch.bfloat16, device=device), weight, 1e-5).shape == (0, 64)


def test_rms_norm_of_a_view_of_heads(device):
    """As queries and keys are normalised: [T, N, D] inside wider rows."""
    wide, weight = (draw(*shape, dtype=torch.bfloat16, device=device) for shape in ((5, 8 * 64), (64,)))
    view = wide[:, 64 : 64 * 5].view(5, 4, 64)
    close(rowwise.rms_norm(view, weight, 1e-5), reference.rms_norm(view, weight, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 90])
def test_add_rms_norm_changes_the_residual(dtype, rows, device):
    stream, x, weight = (draw(*s, dtype=dtype, device=device, seed=i) for i, s in enumerate([(rows, 96)] * 2 + [(96,)]))
    other, before = stream.clone(), x.clone()
    close(rowwise.add_rms_norm(stream, x, weight, 1e-5), reference.add_rms_norm(other, before, weight, 1e-5))
    assert torch.equal(stream, other)
    assert torch.equal(x, before)
    for wrong in (x[:, :64], x.double()):
        with pytest.raises(ValueError, match="the residual"):
            rowwise.add_rms_norm(stream, wrong, weight, 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 80), (1, 4864), (2, 3, 128), (0, 64)])
def test_silu_mul(dtype, shape, device):
    x = draw(*shape, dtype=dtype, device=device) * 4
    close(rowwise.silu_mul(x), reference.silu_mul(x))


def rope_case(dtype, device, heads=6, kv_heads=2, dim=80, kv_dtype=None):
    slots = torch.tensor([17, -1, 3, 0, -1, 63], device=device)
    qkv = draw(len(slots), heads + 2 * kv_heads, dim, dtype=dtype, device=device)
    angles = draw(len(slots), dim // 2, dtype=torch.float32, device=device, seed=1) * 50
    caches = torch.full((2, 4, 16, kv_heads, dim), 7.0, device=device).to(kv_dtype or dtype)
    return qkv, angles.cos(), angles.sin(), *caches, slots


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(6, 2, 80), (9, 3, 64), (4, 1, 128), (2, 2, 96)])
def test_rope_store(dtype, heads, kv_heads, dim, device):
    qkv, cos, sin, k, v, slots = rope_case(dtype, device, heads, kv_heads, dim)
    k_expected, v_expected, before = k.clone(), v.clone(), qkv.clone()
    expected = reference.rope_store(qkv, cos, sin, k_expected, v_expected, slots)
    close(rowwise.rope_store(qkv, cos, sin, k, v, slots), expected)
    close(k, k_expected)
    assert torch.equal(v, v_expected)  # padding wrote nothing: the slots that no token has are as they were
    assert torch.equal(qkv, before)


@pytest.mark.parametrize("kv_dtype", [torch.float8_e4m3fn, torch.int8])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(6, 2, 80), (9, 3, 64), (2, 2, 96)])
def test_rope_store_into_eight_bits(heads, kv_heads, dim, kv_dtype, device):
    """Codes and scales within rounding of the reference's; what is not written, codes and scales, stays as it was."""
    qkv, cos, sin, k, v, slots = rope_case(torch.bfloat16, device, heads, kv_heads, dim, kv_dtype)
    qkv[0] *= 1000
    qkv[2, heads:] = 0  # a scale has to be above zero
    scales = torch.full((2, 4, kv_heads, 16), 3.0, device=device)
    others = [x.clone() for x in (k, v)], scales.clone()
    (k_expected, v_expected), scales_expected = others
    names = "k_scale", "v_scale"
    expected = reference.rope_store(
        qkv, cos, sin, k_expected, v_expected, slots, **dict(zip(names, scales_expected, strict=True))
    )
    close(rowwise.rope_store(qkv, cos, sin, k, v, slots, **dict(zip(names, scales, strict=True))), expected)
    torch.testing.assert_close(
        scales, scales_expected, rtol=1e-2, atol=0
    )  # the reference rounds keys to bfloat16 first
    step = 1.0 if kv_dtype is torch.int8 else 32.0  # between neighbouring codes, at the most
    for got, want in ((k, k_expected), (v, v_expected)):
        assert (got.float() - want.float()).abs().max() <= step
        assert (got.float() != want.float()).float().mean() < 0.05
        untouched = torch.ones(64, dtype=torch.bool, device=device)
        untouched[slots[slots >= 0]] = False
        assert (got.flatten(0, 1).float()[untouched] == 7).all()
    assert (scales.transpose(2, 3).flatten(1, 2)[:, untouched] == 3).all()
    assert (scales.transpose(2, 3).flatten(1, 2)[:, ~untouched] != 3).all()


def test_int8_codes_are_rounded_to_nearest_even(device):
    """Values that need no rounding of their scale: 127 is the largest, and halves lie between the codes."""
    qkv, cos, sin, k, v, _ = rope_case(torch.float32, device, 1, 1, 32, torch.int8)
    qkv[:, 2] = torch.arange(32, device=device) - 7.5
    qkv[:, 2, 0] = 127
    scales = torch.zeros(2, 4, 1, 16, device=device)
    slots = torch.arange(6, device=device)
    rowwise.rope_store(qkv, cos, sin, k, v, slots, k_scale=scales[0], v_scale=scales[1])
    assert (scales[1].flatten()[:6] == 1).all()
    assert torch.equal(v.flatten(0, 1)[:6, 0].float(), qkv[:, 2].round())
