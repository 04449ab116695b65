"""`Operators`: what a backend has to offer. A module with these functions is one: `reference`, `cpu.ops`.

A decoder is given its backend when it is made and asks nobody else, so that two engines in one process may use two.
Shapes and meanings are those of `reference`, the truth that each backend is tested against.
"""

from typing import Protocol

from torch import Tensor

from miniserve.kernels.expert_stack import ExpertStack
from miniserve.kernels.linear_weight import LinearWeight


class Operators(Protocol):
    """The operators of a decoder. Each has its description in `reference`.

    Example:
        >>> import torch
        >>> from miniserve.kernels import reference
        >>> from miniserve.kernels.cpu import ops
        >>> x, weight = torch.randn(5, 64), torch.randn(64)
        >>> torch.allclose(ops.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6), atol=1e-5)
        True
    """

    def linear(self, x: Tensor, weight: LinearWeight) -> Tensor:
        """See `reference.linear`."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `reference.rms_norm`."""
        ...

    def add_rms_norm(self, residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `reference.add_rms_norm`."""
        ...

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """See `reference.silu_mul`."""
        ...

    def rope_store(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        slots: Tensor,
        *,
        k_scale: Tensor | None = None,
        v_scale: Tensor | None = None,
    ) -> Tensor:
        """See `reference.rope_store`."""
        ...

    def paged_attention(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        query_start: Tensor,
        context_lens: Tensor,
        block_table: Tensor,
        *,
        k_scale: Tensor | None = None,
        v_scale: Tensor | None = None,
    ) -> Tensor:
        """See `reference.paged_attention`."""
        ...

    def route(self, router_logits: Tensor, experts_per_token: int, normalize: bool) -> tuple[Tensor, Tensor]:
        """See `reference.route`."""
        ...

    def moe(
        self,
        x: Tensor,
        weights: Tensor,
        expert_ids: Tensor,
        gate_up: Tensor | ExpertStack,
        down: Tensor | ExpertStack,
    ) -> Tensor:
        """See `reference.moe`."""
        ...

    def argmax(self, logits: Tensor) -> Tensor:
        """See `reference.argmax`."""
        ...
