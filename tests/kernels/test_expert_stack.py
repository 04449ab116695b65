"""Stacks of experts: each expert's matrix, in every form."""

import pytest
import torch

from miniserve.kernels.expert_stack import ExpertStack
from miniserve.kernels.formats import E4M3, INT8
from miniserve.kernels.groups import Groups
from miniserve.kernels.linear_weight import LinearWeight
from miniserve.kernels.scaled_gemm import quantise_rows

EXPERTS, ROWS, COLUMNS = 3, 16, 64
WIDE = torch.randn(EXPERTS, ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))


def test_floats_are_a_stack_already():
    stack = ExpertStack.of(WIDE)
    assert stack.shape == WIDE.shape
    assert stack.matrix.data.data_ptr() == WIDE.data_ptr()
    assert ExpertStack.of(stack) is stack
    assert torch.equal(stack[2].data, WIDE[2])
    assert torch.equal(stack.dense(), WIDE)


@pytest.mark.parametrize("form", [8, 4, E4M3, INT8], ids=str)
def test_an_expert_is_its_rows(form):
    def pack(matrix):
        return (
            LinearWeight.packed(Groups.rounding(matrix, form))
            if form in (4, 8)
            else LinearWeight(*quantise_rows(matrix, form))
        )

    stack = ExpertStack(pack(WIDE.flatten(0, 1)), EXPERTS)
    assert stack.shape == WIDE.shape
    for expert, matrix in enumerate(WIDE):
        alone = pack(matrix)
        assert torch.equal(stack[expert].data.view(torch.uint8), alone.data.view(torch.uint8))
        assert torch.equal(stack[expert].scales, alone.scales)
        assert torch.equal(stack.dense()[expert], alone.dense())


def test_experts_without_whole_panels_are_refused():
    packed = LinearWeight.packed(Groups.rounding(torch.ones(24, COLUMNS), 4))
    assert ExpertStack(packed, 3).shape == (3, 8, COLUMNS)
    with pytest.raises(ValueError, match="24 rows"):
        ExpertStack(packed, 2)
