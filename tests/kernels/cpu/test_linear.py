"""Products with weights of every kind against float64, and a token's bits whatever its batch."""

import pytest
import torch

from miniserve.kernels.cpu.linear import LinearWeight, linear

pytestmark = pytest.mark.usefixtures("compiled")
KINDS = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "8": (torch.float32, 8),
    "4": (torch.float32, 4),
}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight_of(kind, rows, columns, **more):
    dtype, bits = KINDS[kind]
    return LinearWeight.of((draw(rows, columns, seed=1) * 0.05).to(dtype), bits, **more)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (5, 128), (963, 576), (576, 1536), (64, 4160)])
def test_equals_float64(kind, rows, columns):
    weight = weight_of(kind, rows, columns)
    assert weight.shape == (rows, columns)
    for tokens in (0, 1, 2, 3, 4, 5, 7, 70):
        x = draw(tokens, columns)
        expected = x.double() @ weight.dense().double().T
        # Rounding activations to 16 bits costs three parts in 100,000 of what is added up, and more cannot be lost.
        limit = 2e-6 if weight.scales is None else 1e-4
        added_up = x.double().abs() @ weight.dense().double().abs().T
        assert ((linear(x, weight).double() - expected).abs() <= limit * added_up).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_alone_and_in_a_batch(kind):
    weight, x = weight_of(kind, 963, 576, bias=draw(963)), draw(300, 576)
    together = linear(x, weight)
    for tokens in (1, 2, 3, 4, 5, 6, 9):
        assert torch.equal(linear(x[:tokens], weight), together[:tokens])
    assert torch.equal(torch.cat([linear(row[None], weight) for row in x[290:]]), together[290:])


@pytest.mark.parametrize("kind", KINDS)
def test_bias_shape_and_bfloat16_activations(kind):
    plain, biased = weight_of(kind, 40, 128), weight_of(kind, 40, 128, bias=draw(40).bfloat16())
    x = draw(2, 3, 128)
    assert torch.allclose(linear(x, biased), linear(x, plain) + draw(40).bfloat16().float(), atol=1e-6)
    got = linear(x.bfloat16(), plain)
    assert got.dtype is torch.bfloat16
    assert torch.equal(got, linear(x.bfloat16().float(), plain).bfloat16())


def test_what_was_4_bit_stays_exact():
    """Groups of 32 with a half scale and a half minimum, both ends of the range in use: a GGUF file's Q4_1."""
    q = torch.randint(0, 16, (20, 4, 32), generator=torch.Generator().manual_seed(2))
    q[..., 0], q[..., 1] = 0, 15
    scale, minimum = (draw(20, 4).abs() * 0.01).half(), (draw(20, 4, seed=3) * 0.1).half()
    weight = (q * scale.float()[..., None] + minimum.float()[..., None]).flatten(1)
    assert torch.equal(LinearWeight.of(weight, 4).dense(), weight)


def test_what_was_8_bit_stays_exact():
    q = torch.randint(-127, 128, (20, 4, 32), generator=torch.Generator().manual_seed(2))
    q[..., 5] = 127
    weight = (q * (draw(20, 4).abs() * 0.01).half().float()[..., None]).flatten(1)
    assert torch.equal(LinearWeight.of(weight, 8).dense(), weight)


@pytest.mark.parametrize(("bits", "error"), [(8, 0.006), (4, 0.09)])
def test_rounding_loses_little(bits, error):
    weight = draw(64, 576)
    assert (LinearWeight.of(weight, bits).dense() - weight).norm() / weight.norm() < error
    constant = torch.full((3, 64), 0.25)
    assert torch.equal(LinearWeight.of(constant, 4).dense(), constant)
    assert not LinearWeight.of(torch.zeros(3, 64), bits).dense().any()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_number_stays_in_its_row(kind):
    x = draw(6, 128)
    x[1, 3], x[4, 100] = torch.nan, torch.inf
    got = linear(x, weight_of(kind, 40, 128))
    assert got[[0, 2, 3, 5]].isfinite().all()
    assert not got[[1, 4]].isfinite().any()


def test_zeros():
    for kind in KINDS:
        assert not linear(torch.zeros(3, 128), weight_of(kind, 40, 128)).any()


def test_refusals():
    with pytest.raises(ValueError, match="a multiple of 64"):
        LinearWeight.of(draw(3, 96))
    with pytest.raises(ValueError, match="float16"):
        LinearWeight.of(draw(3, 64).half())
    with pytest.raises(ValueError, match="rows of 64"):
        linear(draw(2, 128), LinearWeight.of(draw(3, 64)))
