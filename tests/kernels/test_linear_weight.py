"""Weights of few bits: exact where they were of few bits before, close elsewhere."""

import pytest
import torch

from miniserve.kernels.groups import Groups
from miniserve.kernels.linear_weight import LinearWeight


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_what_was_4_bit_stays_exact():
    """Groups of 32 with a half scale and a half minimum, both ends of the range in use: a GGUF file's Q4_1."""
    q = torch.randint(0, 16, (24, 4, 32), generator=torch.Generator().manual_seed(2))
    q[..., 0], q[..., 1] = 0, 15
    scale, minimum = (draw(24, 4).abs() * 0.01).half(), (draw(24, 4, seed=3) * 0.1).half()
    weight = (q * scale.float()[..., None] + minimum.float()[..., None]).flatten(1)
    assert torch.equal(LinearWeight.packed(Groups.rounding(weight, 4)).dense(), weight)


def test_what_was_8_bit_stays_exact():
    q = torch.randint(-127, 128, (24, 4, 32), generator=torch.Generator().manual_seed(2))
    q[..., 5] = 127
    weight = (q * (draw(24, 4).abs() * 0.01).half().float()[..., None]).flatten(1)
    assert torch.equal(LinearWeight.packed(Groups.rounding(weight, 8)).dense(), weight)


@pytest.mark.parametrize(("bits", "error"), [(8, 0.006), (4, 0.09)])
def test_rounding_loses_little(bits, error):
    weight = draw(64, 576)
    assert (LinearWeight.packed(Groups.rounding(weight, bits)).dense() - weight).norm() / weight.norm() < error
    constant = torch.full((8, 64), 0.25)
    assert torch.equal(LinearWeight.packed(Groups.rounding(constant, 4)).dense(), constant)
    assert not LinearWeight.packed(Groups.rounding(torch.zeros(8, 64), bits)).dense().any()


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_rows_are_those_of_the_whole(bits):
    weight = draw(48, 128)
    matrix = LinearWeight.packed(Groups.rounding(weight, bits)) if bits else LinearWeight(weight)
    assert matrix.shape == (48, 128)
    indices = torch.tensor([47, 3, 3, 0])
    assert torch.equal(matrix.rows(indices), matrix.dense()[indices])


@pytest.mark.parametrize(("bits", "per_weight"), [(None, 4), (8, 1 + 2 / 32), (4, 0.5 + 4 / 32)])
def test_bytes_are_what_a_product_reads(bits, per_weight):
    weight, bias = draw(48, 128), draw(48)
    matrix = LinearWeight.packed(Groups.rounding(weight, bits), bias) if bits else LinearWeight(weight, None, bias)
    assert matrix.nbytes == 48 * 128 * per_weight + 48 * 4


def test_shapes_without_whole_blocks_are_refused():
    with pytest.raises(ValueError, match="a multiple of 64"):
        LinearWeight.packed(Groups.rounding(draw(3, 96), 8))
    for weight in (draw(3, 72), draw(64)):
        with pytest.raises(ValueError, match="no whole groups of 32"):
            Groups.rounding(weight, 8)


def test_rows_without_whole_panels_are_refused():
    with pytest.raises(ValueError, match="a multiple of 64 and N of 8"):
        LinearWeight.packed(Groups.rounding(draw(12, 64), 4))
    assert LinearWeight.packed(Groups.rounding(draw(12, 64), 8)).shape == (12, 64)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e5])
def test_values_that_no_scale_spans_are_refused(value):
    weight = draw(8, 64)
    weight[3, 5] = value
    with pytest.raises(ValueError, match="beyond 65504"):
        LinearWeight.packed(Groups.rounding(weight, 4))
