"""A mixture over sorted tokens is the reference's, and so are its gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.kernels import reference
from miniserve.train import experts


def both(tokens, hidden, inner, number, chosen, seed=0, favour=0.0):
    """Of either: the result, and gradients of x, scores, gate_up and down."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (tokens, hidden), (tokens, number), (number, 2 * inner, hidden), (number, hidden, inner)
    given = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    given[1][:, 0] += favour
    towards, found = torch.randn(tokens, hidden, generator=generator, dtype=torch.float64), []
    for each in (reference.moe, experts.moe):
        x, scores, gate_up, down = (part.clone().requires_grad_() for part in given)
        weights, ids = reference.route(scores, chosen, True)
        y = each(x, weights.double(), ids, gate_up, down)
        (y * towards).sum().backward()
        found.append([y.detach(), x.grad, scores.grad, gate_up.grad, down.grad])
    return found


@given(st.integers(1, 40), st.integers(1, 6), st.data())
@settings(max_examples=25, deadline=None)
def test_it_is_the_references(tokens, number, data):
    chosen = data.draw(st.integers(1, number))
    expected, found = both(tokens, 8, 6, number, chosen, data.draw(st.integers(0, 99)))
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(one, other, atol=1e-12, rtol=1e-6)


def test_experts_that_nobody_goes_to_learn_nothing():
    expected, found = both(20, 8, 6, 4, 1, favour=50.0)
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(one, other, atol=1e-12)
    assert not found[3][1:].any()
    assert found[3][0].any()


def test_gradients_are_the_functions_slopes():
    generator = torch.Generator().manual_seed(1)
    shapes = (5, 4), (3, 6, 4), (3, 4, 3)
    given = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    weights, ids = (
        torch.rand(5, 2, generator=generator).double(),
        torch.tensor([[0, 1], [2, 0], [1, 2], [0, 2], [2, 1]]),
    )
    assert torch.autograd.gradcheck(lambda x, up, down: experts.moe(x, weights, ids, up, down), given)


def test_padding_is_not_for_it():
    with pytest.raises(RuntimeError):
        experts.moe(torch.ones(1, 4), torch.ones(1, 1), torch.tensor([[-1]]), torch.ones(2, 6, 4), torch.ones(2, 4, 3))
