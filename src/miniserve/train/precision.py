"""In which numbers a training step computes, and what that takes: casts, loss scaling, FP8 products.

Weights, their gradients and the optimiser's state are float32 whatever the mode: an update is often too small to change
a weight of fewer bits (Micikevicius et al. 2018, "Mixed Precision Training", section 3.1). What differs is what
products are made of:

- fp32: everything.
- bf16: bfloat16, whose exponent is float32's, so gradients need no care.
- fp16: float16, whose smallest number is 6e-8: the loss is scaled up so that gradients do not vanish, by a factor that
  grows while they stay finite and shrinks when they do not; such a step is left out (ibid., section 3.2).
- fp8: the layers' products in E4M3 with a scale for each row, forward and backward; the rest as bf16.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from miniserve.errors import InvalidRequestError
from miniserve.kernels import reference
from miniserve.kernels.expert_stack import ExpertStack
from miniserve.kernels.linear_weight import LinearWeight
from miniserve.kernels.operators import Operators
from miniserve.train import experts
from miniserve.train.fp8 import fp8_linear

Mode = Literal["fp32", "bf16", "fp16", "fp8"]
MODES: tuple[Mode, ...] = get_args(Mode)
CASTS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}


class TrainOperators:
    """The reference's operators, but for a mixture's: see `experts`."""

    rms_norm = staticmethod(reference.rms_norm)
    add_rms_norm = staticmethod(reference.add_rms_norm)
    linear = staticmethod(reference.linear)
    silu_mul = staticmethod(reference.silu_mul)
    rope_store = staticmethod(reference.rope_store)
    paged_attention = staticmethod(reference.paged_attention)
    argmax = staticmethod(reference.argmax)
    route = staticmethod(reference.route)

    @staticmethod
    def moe(
        x: Tensor,
        weights: Tensor,
        expert_ids: Tensor,
        gate_up: Tensor | ExpertStack,
        down: Tensor | ExpertStack,
    ) -> Tensor:
        """As `reference.moe`."""
        return experts.moe(x, weights, expert_ids, _floats(gate_up), _floats(down))


class Fp8Operators(TrainOperators):
    """The same with linear layers' products in FP8."""

    @staticmethod
    def linear(x: Tensor, weight: LinearWeight) -> Tensor:
        """As `reference.linear`, of E4M3 rows; the result is bfloat16."""
        product = fp8_linear(x, weight.data)
        return product if weight.bias is None else product + weight.bias.to(product.dtype)

    @staticmethod
    def moe(
        x: Tensor,
        weights: Tensor,
        expert_ids: Tensor,
        gate_up: Tensor | ExpertStack,
        down: Tensor | ExpertStack,
    ) -> Tensor:
        """As `reference.moe`, of such products."""
        return experts.moe(
            x.bfloat16(), weights, expert_ids, _floats(gate_up), _floats(down), linear=Fp8Operators.linear
        )


def _floats(stack: Tensor | ExpertStack) -> Tensor:
    return stack.dense() if isinstance(stack, ExpertStack) else stack


def operators(mode: Mode) -> Operators:
    """The backend of a decoder that is trained so."""
    return Fp8Operators() if mode == "fp8" else TrainOperators()


class Precision:
    """A mode at work on one device.

    Args:
        mode: which.
        device: where the weights are.
        init_scale: of the loss, in fp16.
        growth_interval: steps with finite gradients after which it doubles.

    Raises:
        InvalidRequestError: the mode is unknown.
    """

    def __init__(
        self, mode: Mode, device: torch.device, *, init_scale: float = 2.0**16, growth_interval: int = 200
    ) -> None:
        if mode not in MODES:
            raise InvalidRequestError(f"precision '{mode}' is not one of {', '.join(MODES)}")
        self.mode, self.device = mode, device
        self.scaler = torch.amp.GradScaler(
            device.type, init_scale=init_scale, growth_interval=growth_interval, enabled=mode == "fp16"
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of products; of FP8 ones, their results'."""
        return CASTS.get(self.mode, torch.float32)

    def computing(self) -> AbstractContextManager[object]:
        """Around the forward pass."""
        if self.mode == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, CASTS[self.mode])

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss, scaled if need be."""
        torch.autograd.backward(self.scaler.scale(loss))

    def step(self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], max_norm: float) -> float:
        """Clip the gradients to a norm, and update.

        Returns:
            Their norm before; infinite or NaN where the step was left out, since they were not finite.
        """
        self.scaler.unscale_(optimizer)
        norm = float(nn.utils.clip_grad_norm_(parameters, max_norm))
        if self.mode == "fp16" or torch.isfinite(torch.tensor(norm)):
            self.scaler.step(optimizer)  # leaves the step out itself, where it has found that it must
        self.scaler.update()
        return norm
