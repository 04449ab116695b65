"""Products with weights of every kind against float64, and a token's bits whatever its batch."""

import pytest
import torch

from miniserve.kernels import reference
from miniserve.kernels.cpu.linear import MANY, linear
from miniserve.kernels.groups import GROUP, Groups
from miniserve.kernels.linear_weight import LinearWeight

pytestmark = pytest.mark.usefixtures("compiled")
KINDS = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "8": (torch.float32, 8),
    "4": (torch.float32, 4),
}


@pytest.fixture(autouse=True)
def no_bfloat16_products(monkeypatch):
    """Or this processor's would be used, which round activations and depend on the batch."""
    monkeypatch.setattr("miniserve.kernels.cpu.linear.has_bf16_products", lambda: False)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight_of(kind, rows, columns, bias=None):
    dtype, bits = KINDS[kind]
    weight = (draw(rows, columns, seed=1) * 0.05).to(dtype)
    return LinearWeight.packed(Groups.rounding(weight, bits), bias) if bits else LinearWeight(weight, None, bias)


def product(x, weight):
    """What is promised, in float64: with 4 bits, for activations that are rounded as they are there."""
    x, dense, columns = x.double(), weight.dense().double(), weight.shape[1]
    if weight.data.dtype is not torch.uint8:
        return x @ dense.T
    groups, size = x.view(len(x), columns // GROUP, GROUP), x.square().mean(-1).sqrt()[:, None, None]
    most = groups.abs().amax(-1, keepdim=True)
    scale = (most / 127).clamp(min=1e-30)
    first = nearest(groups / scale)
    second = nearest((groups / scale - first) * 254) / 254
    near = (first + torch.where(most > 4 * size, second, 0)) * scale
    return near.view(len(x), columns) @ dense.T


def nearest(x):
    return (x.abs() + 0.5).floor() * x.sign()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 64), (5, 128), (963, 576), (576, 1536), (64, 4160), (8, 64), (40, 192)]
)
def test_equals_float64(kind, rows, columns):
    if kind == "4" and rows % 8:
        pytest.skip("4-bit weights lie in panels of eight rows")
    weight = weight_of(kind, rows, columns)
    assert weight.shape == (rows, columns)
    for tokens in (0, 1, 2, 3, 4, 5, 7, 70):
        x = draw(tokens, columns)
        if kind == "4":
            x[:, columns // 3] *= 30  # as some channels of a transformer are: these get a second byte
        # Of what is added up. Rounding activations to 16 bits costs three parts in 100,000; and one in a thousand may
        # be rounded to 8 bits the other way, where float32 and float64 do not agree on which number is nearest.
        limit = {None: 2e-6, 8: 1e-4, 4: 1e-5}[KINDS[kind][1]]
        added_up = x.double().abs() @ weight.dense().double().abs().T
        error = (linear(x, weight).double() - product(x, weight)).abs()
        assert (error <= limit * added_up).double().mean() > (0.98 if kind == "4" else 0.999999) or not tokens
        assert (error <= 2e-2 * added_up).all()


def test_rounding_activations_to_8_bits_costs_less_than_weights_of_4_bits_do():
    x, exact = draw(50, 576), draw(128, 576, seed=1) * 0.05
    weight = LinearWeight.packed(Groups.rounding(exact, 4))
    of_weights = (x @ weight.dense().T - x @ exact.T).norm()
    assert (linear(x, weight) - x @ weight.dense().T).norm() < of_weights / 5


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_alone_and_in_a_batch(kind):
    weight, x = weight_of(kind, 968, 576, bias=draw(968)), draw(300, 576)
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


def test_rows_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="rows of 64"):
        linear(draw(2, 128), LinearWeight(draw(3, 64)))


@pytest.mark.parametrize("weight", [draw(5, 24), draw(5, 64).half(), draw(5, 128)[:, :64]])
def test_what_the_library_does_not_take_goes_to_torch(weight):
    x = draw(3, weight.shape[1])
    assert torch.equal(linear(x, LinearWeight(weight)), reference.linear(x, LinearWeight(weight)))


def test_bfloat16_products_in_hardware_are_left_to_torch(monkeypatch):
    """On such a processor, from some tokens on. This one may not be one: what is tested is the way that is taken."""
    weight, few, many = weight_of("bfloat16", 40, 128), draw(MANY - 1, 128), draw(MANY, 128)
    monkeypatch.setattr("miniserve.kernels.cpu.linear.has_bf16_products", lambda: True)
    assert torch.equal(linear(many, weight), (many.bfloat16() @ weight.data.T).float())
    assert torch.equal(linear(many[:1], weight), linear(many[:3], weight)[:1])
    monkeypatch.setattr("miniserve.kernels.cpu.linear.has_bf16_products", lambda: False)
    exact = many.double() @ weight.data.double().T
    assert (linear(many, weight) - exact).abs().max() < 1e-4
    assert linear(few, weight).dtype is torch.float32
