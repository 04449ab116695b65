"""What a training step computes, and what share of a peak that is: model FLOPs utilisation.

Forward two FLOPs for each weight that a token passes through and each token, backward four, attention besides
(Chowdhery et al. 2022, "PaLM", appendix B; here each token sees its past alone, half of what that counts). Layers that
are computed again count once: they are the device's work, not the model's.
"""

import time

import torch
from torch import Tensor

from miniserve.model.config import ModelConfig


def token_flops(config: ModelConfig, length: int) -> float:
    """Of one token in sequences of so many, forward and backward."""
    looked_up = 0 if config.tie_embeddings else config.vocab_size * config.hidden_size
    weights = config.num_active_parameters() - looked_up
    seen = (length + 1) / 2
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * seen
    return 3 * (2 * weights + attention)


def product_flops_per_s(device: torch.device, dtype: torch.dtype, size: int = 1024, rounds: int = 5) -> float:
    """What a large product reaches on this device: the best of some rounds. FLOP/s."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = min(_seconds(a, b) for _ in range(rounds + 1))  # the first one warms up
    return 2 * size**3 / best


def _seconds(a: Tensor, b: Tensor) -> float:
    begin = time.perf_counter()
    torch.matmul(a, b)
    if a.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin
