"""The mixture of experts in one call: the reference's results, and the same bits whatever the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.kernels import reference
from miniserve.kernels.cpu import moe as module
from miniserve.kernels.cpu.moe import moe, route
from miniserve.kernels.expert_stack import ExpertStack
from miniserve.kernels.groups import Groups
from miniserve.kernels.linear_weight import LinearWeight

pytestmark = pytest.mark.usefixtures("compiled")
HIDDEN, INNER, EXPERTS, CHOICES = 128, 64, 6, 3
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-5, "int8": 3e-4, "int4": 3e-2}  # of the largest result


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stacks(form):
    wide = draw(EXPERTS, 2 * INNER, HIDDEN, seed=1) / HIDDEN**0.5, draw(EXPERTS, HIDDEN, INNER, seed=2) / INNER**0.5
    if form in ("int8", "int4"):
        return [
            ExpertStack(LinearWeight.packed(Groups.rounding(w.flatten(0, 1), 8 if form == "int8" else 4)), EXPERTS)
            for w in wide
        ]
    return [w.to(getattr(torch, form)) for w in wide]


def inputs(tokens, seed=3):
    return (draw(tokens, HIDDEN, seed=seed), *reference.route(draw(tokens, EXPERTS, seed=seed + 1), CHOICES, True))


def expected(x, weights, ids, experts):
    return reference.moe(x, weights, ids, *(ExpertStack.of(each).dense().float() for each in experts))


@pytest.mark.parametrize("form", TOLERANCE)
@pytest.mark.parametrize("tokens", [1, 2, 7, 20])
def test_equals_the_reference(form, tokens):
    experts = stacks(form)
    x, weights, ids = inputs(tokens)
    got, want = moe(x, weights, ids, *experts), expected(x, weights, ids, experts)
    assert (got - want).abs().max() < TOLERANCE[form] * want.abs().max()


@pytest.mark.parametrize("form", TOLERANCE)
def test_the_same_bits_alone_and_in_any_batch(form, monkeypatch):
    monkeypatch.setattr(module, "torch_is_faster", lambda weight, tokens: False)  # its products are not like that
    experts = stacks(form)
    x, weights, ids = inputs(45)
    together = moe(x, weights, ids, *experts)
    shuffled = torch.randperm(45, generator=torch.Generator().manual_seed(9))
    assert torch.equal(moe(x[shuffled], weights[shuffled], ids[shuffled], *experts), together[shuffled])
    for rows in [slice(0, 1), slice(7, 9), slice(20, 45)]:
        assert torch.equal(moe(x[rows], weights[rows], ids[rows], *experts), together[rows])


def test_more_tokens_than_are_worked_on_at_a_time():
    experts, tokens = stacks("int8"), 4096 // CHOICES + 5
    x, weights, ids = inputs(tokens)
    assert torch.equal(moe(x, weights, ids, *experts)[-7:], moe(x[-7:], weights[-7:], ids[-7:], *experts))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(-1, EXPERTS), min_size=CHOICES, max_size=CHOICES), max_size=12))
def test_padding_and_uneven_choices(chosen):
    """An id that is no expert's adds nothing; some experts may get all tokens, twice even, others none."""
    experts, tokens = stacks("float32"), len(chosen)
    ids = torch.tensor(chosen, dtype=torch.int64).reshape(tokens, CHOICES)
    x, weights = draw(tokens, HIDDEN, seed=5), draw(tokens, CHOICES, seed=6)
    want = expected(x, weights, ids, experts)
    assert torch.allclose(moe(x, weights, ids, *experts), want, rtol=1e-4, atol=1e-5)
    assert (moe(x, weights, torch.full_like(ids, -1), *experts) == 0).all()


def test_what_nobody_chose_is_not_looked_at():
    experts = stacks("float32")
    x, weights, _ = inputs(4)
    ids = torch.tensor([[0, 1, 2]] * 4)
    want = moe(x, weights, ids, *experts)
    for each in experts:
        each[3:] = torch.nan
    assert torch.equal(moe(x, weights, ids, *experts), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_of_16_bits_and_rows_that_the_cpp_does_not_take(dtype):
    x, weights, ids = inputs(5)
    gate_up, down = draw(EXPERTS, 96, HIDDEN) * 0.1, draw(EXPERTS, HIDDEN, 48) * 0.1
    want = reference.moe(x.to(dtype).float(), weights, ids, gate_up, down)
    limit = 1e-5 if dtype is torch.float32 else 2e-2
    assert (moe(x.to(dtype), weights, ids, gate_up, down) - want).abs().max() < limit * want.abs().max()


def test_what_does_not_fit_is_refused():
    gate_up, down = stacks("float32")
    x, weights, ids = inputs(4)
    for wrong in [
        (x[:3], weights, ids, gate_up, down),
        (x, weights, ids, gate_up[:5], down),
        (x, weights, ids, down, down),
    ]:
        with pytest.raises(ValueError, match="do not fit"):
            moe(*wrong)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("experts", "choices"), [(8, 2), (128, 8), (5, 5), (60, 4)])
def test_route(experts, choices, normalize):
    scores = draw(70, experts) * 4
    weights, ids = route(scores, choices, normalize)
    truth, expected_ids = reference.route(scores.double(), choices, normalize)
    assert torch.equal(ids, expected_ids)
    assert torch.allclose(weights, truth, rtol=1e-5, atol=1e-7)


def test_route_of_equal_endless_and_no_numbers():
    scores = torch.tensor([[1.0, 1.0, 1.0], [-torch.inf, 0.0, -torch.inf], [0.0, torch.nan, 1.0]])
    weights, ids = route(scores, 2, True)
    assert ids[0].tolist() == [0, 1]
    assert weights[:2].tolist() == [[0.5, 0.5], [1.0, 0.0]]
    assert weights[2].isnan().all()
    assert ((ids >= 0) & (ids < 3)).all()
