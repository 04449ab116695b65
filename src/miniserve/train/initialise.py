"""Weights to begin with: small and random, the same for the same seed on every device.

Matrices are normal with a standard deviation of 0.02; those that write to the residual stream have it divided by the
square root of how many write to it, so that the stream's variance does not grow with depth (Radford et al. 2019,
"Language Models are Unsupervised Multitask Learners", section 2.3). Norms begin as ones, biases as zeros.
"""

import torch
from torch import nn

from miniserve.model.decoder import Decoder

DEVIATION = 0.02
WRITERS = ("attention.out.weight", "mlp.down", "mlp.down.weight")


@torch.no_grad()
def initialise(decoder: Decoder, seed: int) -> None:
    """Fill all parameters, drawn on the CPU in the order of their names."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(decoder.named_parameters()):
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.dim() == 1:
            parameter.fill_(1.0)
        else:
            writes = name.endswith(WRITERS)
            deviation = DEVIATION / (2 * decoder.config.num_layers) ** 0.5 if writes else DEVIATION
            parameter.copy_(torch.empty(parameter.shape).normal_(0.0, deviation, generator=generator))


def decayed(decoder: Decoder) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters that weight decay shrinks, which are matrices, and the others."""
    every = list(decoder.parameters())
    return [each for each in every if each.dim() > 1], [each for each in every if each.dim() == 1]
