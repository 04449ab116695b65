"""What the decoder's parts are made of: a linear layer and a norm, each with the operators of its backend.

A weight is a parameter, uninitialised until `weights.load_weights` fills it; or it is packed, in a form of fewer bits
or at a place of its own in memory, and then the parameter is empty.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from miniserve.kernels.linear_weight import LinearWeight
from miniserve.kernels.operators import Operators
from miniserve.model.communicator import Communicator


class Placement(NamedTuple):
    """What every part of a decoder shares."""

    dtype: torch.dtype
    device: torch.device
    ops: Operators
    communicator: Communicator

    def parameter(self, *shape: int) -> nn.Parameter:
        """An uninitialised weight."""
        return nn.Parameter(torch.empty(shape, dtype=self.dtype, device=self.device))


class Linear(nn.Module):
    """y = x Wᵀ + b with W [out, in], uninitialised. It may be packed: then W is one of few bits, and `weight` empty."""

    def __init__(self, inputs: int, outputs: int, place: Placement, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = place.parameter(outputs, inputs)
        self.bias = place.parameter(outputs) if bias else None
        self.ops = place.ops
        self._packed: LinearWeight | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return self.ops.linear(x, self.matrix)

    @property
    def matrix(self) -> LinearWeight:
        """W and b as they lie in memory."""
        return self._packed or LinearWeight(self.weight, None, self.bias)

    def pack(self, matrix: LinearWeight) -> None:
        """Put W in another form, or elsewhere in memory, in the place of `weight`, whose memory is given back."""
        self._packed = matrix
        self.weight = nn.Parameter(self.weight.new_empty(0), requires_grad=False)


class RMSNorm(nn.Module):
    """`rms_norm` with its weight, and `add_rms_norm`, which takes what is to be added to the stream first."""

    def __init__(self, size: int, eps: float, place: Placement) -> None:
        super().__init__()
        self.weight = place.parameter(size)
        self.eps, self.ops = eps, place.ops

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] -> [..., size]."""
        return self.ops.rms_norm(x, self.weight, self.eps)

    def add(self, stream: Tensor, x: Tensor | None) -> Tensor:
        """Add x, if any, to the stream [..., size], in place; the stream normalised."""
        return self(stream) if x is None else self.ops.add_rms_norm(stream, x, self.weight, self.eps)

    def of_slice(self, x: Tensor, communicator: Communicator) -> Tensor:
        """[..., size], each rank's slice of wider rows and of their weight -> [..., size]: by whole rows' mean."""
        if communicator.size == 1:
            return self(x)
        wide = x.float()
        mean = communicator.all_reduce(wide.square().mean(-1, keepdim=True)) / communicator.size
        return self.weight * (wide * torch.rsqrt(mean + self.eps)).to(x.dtype)
