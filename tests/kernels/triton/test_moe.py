"""The mixture of experts in Triton against the reference in float64."""

import pytest
import torch

from miniserve.kernels import reference
from miniserve.kernels.expert_stack import ExpertStack
from miniserve.kernels.formats import E4M3, INT8
from miniserve.kernels.linear_weight import LinearWeight
from miniserve.kernels.scaled_gemm import quantise_rows
from miniserve.kernels.triton.configs import MANY_ROWS, GemmConfig, capability, row
from miniserve.kernels.triton.moe import moe
from support.paged import relative_error

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
SMALL = GemmConfig(rows=16, columns=32, depth=32, warps=4, stages=2)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def case(tokens, experts, choices, hidden, inner, dtype, device):
    x, gate_up = draw(tokens, hidden), draw(experts, 2 * inner, hidden, seed=1) / hidden**0.5
    down, router = draw(experts, hidden, inner, seed=2) / inner**0.5, draw(tokens, experts, seed=3)
    weights, ids = reference.route(router, choices, normalize=True)
    parts = x.to(dtype), weights, ids, gate_up.to(dtype), down.to(dtype)
    return tuple(part.to(device) for part in parts)


def expected(x, weights, ids, gate_up, down):
    return reference.moe(x.double(), weights.double(), ids, gate_up.double(), down.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "experts", "choices", "hidden", "inner", "config"),
    [
        (1, 8, 2, 64, 48, SMALL),
        (1, 8, 3, 72, 40, None),
        (2, 4, 2, 64, 48, None),
        (11, 6, 2, 48, 40, SMALL),
        (40, 4, 2, 48, 32, None),
        (33, 5, 1, 48, 32, None),
    ],
)
def test_equals_the_reference(dtype, tokens, experts, choices, hidden, inner, config, device):
    arguments = case(tokens, experts, choices, hidden, inner, dtype, device)
    got = moe(*arguments, config=config)
    assert got.dtype is dtype
    assert relative_error(got, expected(*arguments)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tiles_for_many_tokens(dtype, device):
    arguments = case(50, 3, 2, 64, 40, dtype, device)
    got = moe(*arguments, config=row(MANY_ROWS, capability(device)))
    assert relative_error(got, expected(*arguments)) < TOLERANCE[dtype]


@pytest.mark.parametrize("fmt", [E4M3, INT8], ids=str)
@pytest.mark.parametrize(("tokens", "config"), [(1, None), (2, None), (2, SMALL), (21, None)])
def test_experts_of_8_bits_count_for_what_they_stand_for(fmt, tokens, config, device):
    x, weights, ids, *wide = case(tokens, 5, 2, 64, 48, torch.bfloat16, device)
    stacks = [ExpertStack(LinearWeight(*quantise_rows(each.flatten(0, 1), fmt)), 5) for each in wide]
    got = moe(x, weights, ids, *stacks, config=config)
    assert relative_error(got, expected(x, weights, ids, *(each.dense() for each in stacks))) < 1e-2


def test_all_tokens_to_one_expert(device):
    x, weights, ids, gate_up, down = case(40, 8, 1, 64, 32, torch.float32, device)
    ids[:] = 7
    assert relative_error(moe(x, weights, ids, gate_up, down), expected(x, weights, ids, gate_up, down)) < 1e-5


def test_padding_is_sorted_nowhere_and_adds_nothing(device):
    x, weights, ids, gate_up, down = case(20, 4, 2, 64, 32, torch.float32, device)
    kept = [row for row in range(20) if not 5 <= row < 9]
    want = torch.zeros(20, 64, dtype=torch.float64, device=device)
    want[kept] = expected(x[kept], weights[kept], ids[kept], gate_up, down)
    ids[5:9], x[5:9] = -1, torch.nan
    assert torch.equal(expected(x, weights, ids, gate_up, down), want)
    assert relative_error(moe(x, weights, ids, gate_up, down), want) < 1e-5


def test_padding_beside_a_token_adds_nothing(device):
    x, weights, ids, gate_up, down = case(2, 4, 2, 32, 16, torch.bfloat16, device)
    want = expected(x, weights, ids, gate_up, down)
    ids[1], x[1] = -1, torch.nan
    got = moe(x, weights, ids, gate_up, down)
    assert not got[1].any()
    assert relative_error(got[0], want[0]) < TOLERANCE[torch.bfloat16]


def test_no_tokens(device):
    x, weights, ids, gate_up, down = case(3, 4, 2, 64, 32, torch.float32, device)
    assert moe(x[:0], weights[:0], ids[:0], gate_up, down).shape == (0, 64)
