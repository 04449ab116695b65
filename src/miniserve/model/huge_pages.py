"""`move_to_huge_pages`: a decoder's weights in one region of memory, in the order in which a token reads them."""

from torch import Tensor

from miniserve.kernels.cpu.huge_pages import Arena, rounded_up
from miniserve.kernels.expert_stack import ExpertStack
from miniserve.kernels.linear_weight import LinearWeight
from miniserve.model.decoder import Decoder
from miniserve.model.layers import Linear
from miniserve.model.mixture import STACKS, SparseMLP


def move_to_huge_pages(decoder: Decoder) -> None:
    """Put all weights of linear layers and experts into one region of huge pages, in the order that a token reads."""
    holders = [module for module in decoder.modules() if isinstance(module, Linear | SparseMLP)]
    holders = [holder for holder in holders if not any(tensor.is_meta for tensor in _tensors(holder))]
    arena = Arena(sum(rounded_up(tensor) for holder in holders for tensor in _tensors(holder)))

    def moved(matrix: LinearWeight) -> LinearWeight:
        scales = None if matrix.scales is None else arena.copy(matrix.scales)
        return LinearWeight(arena.copy(matrix.data), scales, matrix.bias)

    for holder in holders:
        if isinstance(holder, Linear):
            holder.pack(moved(holder.matrix))
            continue
        for name, stack in zip(STACKS, holder.stacks, strict=True):
            holder.pack(name, ExpertStack(moved(stack.matrix), stack.num_experts))


def _tensors(holder: Linear | SparseMLP) -> list[Tensor]:
    matrices = [holder.matrix] if isinstance(holder, Linear) else [stack.matrix for stack in holder.stacks]
    return [part for matrix in matrices for part in (matrix.data, matrix.scales) if part is not None]
