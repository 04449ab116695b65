"""The small operators in C++ against the reference."""

import pytest
import torch

from miniserve.kernels import reference
from miniserve.kernels.cpu import ops

pytestmark = pytest.mark.usefixtures("compiled")
BOTH = [torch.float32, torch.bfloat16]


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(got, expected):
    """Within rounding: 1e-5 of the largest in float32, two units in the last place in bfloat16, rounded twice."""
    assert got.dtype is expected.dtype
    assert got.shape == expected.shape
    error = (got.double() - expected.double()).abs()
    if not error.numel():
        return
    if got.dtype is torch.float32:
        assert error.max() <= 1e-5 * expected.abs().max().clamp(min=1)
    else:
        assert (error <= 2.0**-6 * expected.double().abs() + 1e-30).all()


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("weight_dtype", BOTH)
@pytest.mark.parametrize("shape", [(1, 576), (7, 16), (3, 5, 64), (200, 1536), (0, 32), (3, 40)])
def test_rms_norm(dtype, weight_dtype, shape):
    if dtype is torch.bfloat16 and weight_dtype is torch.float32 and shape[-1] == 40:
        pytest.skip("the reference's result is float32 then")
    x, weight = draw(*shape, dtype=dtype) * 3, draw(shape[-1], seed=1, dtype=weight_dtype)
    close(ops.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5).to(dtype))
    assert not ops.rms_norm(torch.zeros_like(x), weight, 1e-5).any()


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("rows", [1, 90])
def test_add_rms_norm(dtype, rows):
    residual, x, weight = (
        draw(rows, 576, dtype=dtype),
        draw(rows, 576, seed=1, dtype=dtype),
        draw(576, seed=2, dtype=dtype),
    )
    summed = residual + x
    got = ops.add_rms_norm(residual, x, weight, 1e-5)
    assert torch.equal(residual, summed)
    close(got, reference.rms_norm(summed, weight, 1e-5))


def test_add_rms_norm_takes_a_view_and_refuses_a_mismatch():
    residual, x, weight = draw(4, 64), draw(4, 32), draw(32)
    view, expected = residual[:, :32], residual[:, :32] + x
    close(ops.add_rms_norm(view, x, weight, 1e-5), reference.rms_norm(expected, weight, 1e-5))
    assert torch.equal(residual[:, :32], expected)
    for other in (x[:3], x.bfloat16()):
        with pytest.raises(ValueError, match="the residual"):
            ops.add_rms_norm(residual[:, :32], other, weight, 1e-5)


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("cache", BOTH)
@pytest.mark.parametrize(("dim", "group"), [(32, 1), (64, 3), (80, 4), (24, 2)])
def test_rope_store(dtype, cache, dim, group):
    tokens, kv_heads, block_size = 9, 2, 4
    heads = kv_heads * group
    qkv, angles = draw(tokens, heads + 2 * kv_heads, dim, dtype=dtype), torch.rand(tokens, dim // 2) * 100
    slots = torch.tensor([3, 17, -1, 0, 22, -5, 9, 39, 10])
    caches, expected = (
        [torch.full((10, block_size, kv_heads, dim), torch.nan, dtype=cache) for _ in range(2)] for _ in range(2)
    )
    got = ops.rope_store(qkv, angles.cos(), angles.sin(), *caches, slots)
    close(got, reference.rope_store(qkv, angles.cos(), angles.sin(), *expected, slots))
    for mine, truth in zip(caches, expected, strict=True):
        assert torch.equal(mine.isnan(), truth.isnan()), "padding was written, or something was not"
        close(mine.nan_to_num(), truth.nan_to_num())


def test_rope_store_refuses_a_slot_behind_the_end():
    caches = [torch.zeros(2, 4, 1, 16) for _ in range(2)]
    with pytest.raises(ValueError, match="a slot is 8, and the cache has 8"):
        ops.rope_store(draw(1, 3, 16), torch.ones(1, 8), torch.zeros(1, 8), *caches, torch.tensor([8]))


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("shape", [(1, 3072), (2, 3, 32), (80, 512), (3, 20), (0, 64)])
def test_silu_mul(dtype, shape):
    gate_up = draw(*shape, dtype=dtype) * 20
    close(ops.silu_mul(gate_up), reference.silu_mul(gate_up))


def test_silu_of_large_numbers():
    gate = torch.tensor([-torch.inf, -1e30, -200.0, -88.0, -0.0, 0.0, 88.0, 200.0, 1e30, torch.nan] + [1.0] * 6)
    got = ops.silu_mul(torch.cat((gate, torch.ones(16)))[None])[0]
    assert (got[1:4].abs() < 1e-8).all()  # e^-88 is the least that is told from zero: times 1e30 it shows
    assert torch.equal(got[4:9], gate[4:9])
    assert got[9].isnan()


@pytest.mark.parametrize("size", [1, 7, 1024, 49152, 49157])
def test_argmax(size):
    logits = draw(5, size)
    assert torch.equal(ops.argmax(logits), logits.argmax(-1))
    assert torch.equal(ops.argmax(torch.zeros(3, size)), torch.zeros(3, dtype=torch.int64)), "of equals, the first"
    assert torch.equal(ops.argmax(torch.full((2, size), -torch.inf)), torch.zeros(2, dtype=torch.int64))
    logits[2, size // 2 :] = logits.max() + 1
    assert ops.argmax(logits)[2] == size // 2
    logits[3, size // 3], logits[3, -1] = torch.nan, torch.inf
    assert ops.argmax(logits)[3] == (size // 3 if size > 1 else 0)
