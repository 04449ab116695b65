"""The losses against their formulas, written out."""

import pytest
import torch
import torch.nn.functional as F

from miniserve.train.forward import Activations
from miniserve.train.losses import load_balance, losses, router_z


def test_cross_entropy_alone_without_a_mixture():
    logits, targets = torch.randn(6, 11), torch.randint(0, 11, (2, 3))
    found = losses(Activations(logits, []), targets, 2)
    expected = -torch.stack([logits[at].log_softmax(-1)[target] for at, target in enumerate(targets.flatten())]).mean()
    assert found.total == found.cross_entropy == pytest.approx(float(expected), rel=1e-5)
    assert (found.balance, found.z) == (0, 0)


def test_balance_is_one_where_experts_are_alike_and_their_number_where_one_has_all():
    even = torch.eye(4).repeat(8, 1) * 20
    assert float(load_balance(even, 1)) == pytest.approx(1, abs=1e-6)
    one = torch.zeros(8, 4)
    one[:, 2] = 50
    assert float(load_balance(one, 1)) == pytest.approx(4, abs=1e-6)


def test_balance_is_its_formula_and_pushes_the_busy_down():
    scores = torch.randn(40, 8, requires_grad=True)
    probabilities = scores.detach().softmax(-1)
    shares = F.one_hot(probabilities.topk(3).indices, 8).float().sum((0, 1)) / (40 * 3)
    expected = sum(8 * shares[expert] * probabilities[:, expert].mean() for expert in range(8))
    loss = load_balance(scores, 3)
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)
    loss.backward()
    towards = scores.grad.sum(0)
    assert towards[shares.argmax()] > 0 > towards[shares.argmin()]  # descent lowers the busy one's score


def test_z_is_its_formula():
    scores = torch.tensor([[0.0, 0.0], [3.0, 1.0]])
    expected = (torch.tensor(2.0).log() ** 2 + (torch.tensor(3.0).exp() + torch.tensor(1.0).exp()).log() ** 2) / 2
    assert float(router_z(scores)) == pytest.approx(float(expected), rel=1e-6)


def test_the_total_is_the_weighted_sum_over_layers():
    logits, targets = torch.randn(4, 5), torch.randint(0, 5, (1, 4))
    layers = [torch.randn(4, 3), torch.randn(4, 3)]
    found = losses(Activations(logits, layers), targets, 1, balance=0.5, z=0.25)
    assert float(found.balance) == pytest.approx(float(sum(load_balance(each, 1) for each in layers) / 2))
    assert float(found.total) == pytest.approx(float(found.cross_entropy + 0.5 * found.balance + 0.25 * found.z))
