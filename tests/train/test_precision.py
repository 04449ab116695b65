"""What each mode computes in: near float32, and float16 fails without a scale where it works with one."""

from functools import cache

import pytest
import torch

from miniserve.errors import InvalidRequestError
from miniserve.train.fp8 import fp8_linear
from miniserve.train.precision import MODES, Precision
from support.tiny_training import SPARSE, settings, trainer

CPU = torch.device("cpu")


@cache
def learned_in_float32():
    plain = trainer(settings(SPARSE, steps=10))
    begin = plain.evaluate()
    list(plain.run())
    assert plain.evaluate() < begin - 0.3
    return plain.evaluate()


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_learns_about_as_well(mode):
    run = trainer(settings(SPARSE, steps=10, precision=mode))
    list(run.run())
    assert run.evaluate() == pytest.approx(learned_in_float32(), abs=0.15)
    assert all(each.dtype == torch.float32 for each in run.decoder.parameters())


def test_fp8_products_are_near_in_all_three_directions():
    generator = torch.Generator().manual_seed(0)
    x, weight, towards = (torch.randn(shape, generator=generator) for shape in ((40, 64), (32, 64), (40, 32)))
    x.requires_grad_(), weight.requires_grad_()
    (fp8_linear(x, weight).float() * towards).sum().backward()
    for found, expected in (
        (fp8_linear(x, weight).float(), x @ weight.T), (x.grad, towards @ weight), (weight.grad, towards.T @ x),
    ):  # fmt: skip
        error = (found - expected).norm() / expected.norm()
        assert 0.005 < error < 0.06  # E4M3 has three bits behind the leading one


def test_fp8_takes_any_shape_in_front_and_nobody():
    weight = torch.randn(32, 16, requires_grad=True)
    assert fp8_linear(torch.randn(2, 3, 16), weight).shape == (2, 3, 32)
    assert fp8_linear(torch.randn(0, 16), weight).shape == (0, 32)


def test_float16_gradients_vanish_without_a_scale():
    """A gradient of 1e-9 is no float16; scaled by 2^16 it is."""
    x = torch.full((1, 4), 1e-4, dtype=torch.float16)
    for scale, vanishes in ((1.0, True), (2.0**16, False)):
        weight = torch.zeros(1, 4, dtype=torch.float16, requires_grad=True)
        loss = (torch.nn.functional.linear(x, weight).float() * 1e-5).sum()
        (loss * scale).backward()
        assert bool((weight.grad == 0).all()) is vanishes


def test_a_step_whose_gradients_are_not_finite_is_left_out_and_the_scale_halved():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    precision = Precision("fp16", CPU, init_scale=2.0**10)
    precision.backward((weight * float("inf")).sum())
    norm = precision.step(optimizer, [weight], 1.0)
    assert not torch.isfinite(torch.tensor(norm))
    assert torch.equal(weight.detach(), torch.ones(3))
    assert precision.scaler.get_scale() == 2.0**9
    optimizer.zero_grad()
    precision.backward(weight.sum())
    assert precision.step(optimizer, [weight], 10.0) == pytest.approx(3**0.5)
    assert torch.allclose(weight.detach(), torch.full((3,), 0.9))


@pytest.mark.parametrize("mode", ["fp32", "bf16"])
def test_no_step_is_made_with_gradients_that_are_not_finite(mode):
    weight = torch.nn.Parameter(torch.ones(3))
    precision = Precision(mode, CPU)
    precision.backward((weight * float("nan")).sum())
    precision.step(torch.optim.SGD([weight], lr=0.1), [weight], 1.0)
    assert torch.equal(weight.detach(), torch.ones(3))


def test_an_unknown_mode_is_refused():
    with pytest.raises(InvalidRequestError, match="precision 'fp4' is not one of fp32, bf16, fp16, fp8"):
        Precision("fp4", CPU)
