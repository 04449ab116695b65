"""Two ways for one sequence's tokens to see their past: recompute it, or keep it.

Both are `decoder.Attend`. `NoCache` attends within the tokens it is given, so the whole sequence must be given each
time. `ContiguousCache` keeps every layer's keys and values in one preallocated strip, so that only new tokens need be
given; its length moves once per forward pass, by `advance`. One sequence only: many at once, in paged memory, are the
engine's business.
"""

import torch
from torch import Tensor

from miniserve.errors import InvalidRequestError
from miniserve.kernels import reference as ops
from miniserve.model.config import ModelConfig


class NoCache:
    """Attention over exactly the tokens of this call. `length` stays 0: nothing is remembered."""

    length = 0

    def __init__(self, config: ModelConfig) -> None:
        self._kv_heads = config.num_kv_heads

    def __call__(self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # noqa: ARG002, no layer is kept
        """qkv [T, N + 2·G, D] -> [T, N, D]."""
        q, k, v = _rotated(qkv, self._kv_heads, cos, sin)
        return ops.causal_attention(q, k, v)

    def advance(self, num_tokens: int) -> None:
        """Nothing to advance."""


class ContiguousCache:
    """Keys and values of one sequence: per layer [capacity, G, D], the first `length` rows filled.

    Args:
        config: sizes.
        capacity: most tokens it can hold.
        dtype: of keys and values, the decoder's.
        device: where they live, the decoder's.
    """

    def __init__(self, config: ModelConfig, capacity: int, *, dtype: torch.dtype, device: torch.device) -> None:
        shape = (config.num_layers, capacity, config.num_kv_heads, config.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.capacity, self.length = capacity, 0

    def __call__(self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Append the keys and values of qkv [T, N + 2·G, D] behind the kept ones; the queries see all -> [T, N, D].

        Raises:
            InvalidRequestError: the new tokens do not fit.
        """
        end = self.length + qkv.shape[0]
        if end > self.capacity:
            raise InvalidRequestError(f"the KV cache holds {self.capacity} tokens; {end} were asked for")
        q, k, v = _rotated(qkv, self.keys.shape[2], cos, sin)
        self.keys[layer, self.length : end] = k
        self.values[layer, self.length : end] = v
        keys, values = (kept[layer, :end].to(q.dtype) for kept in (self.keys, self.values))
        return ops.causal_attention(q, keys, values)

    def advance(self, num_tokens: int) -> None:
        """Call once after each forward pass, when every layer has stored the same new tokens."""
        self.length += num_tokens


def _rotated(qkv: Tensor, kv_heads: int, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys with their positions in them, and values."""
    q, k, v = torch.split(qkv, [qkv.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1)
    return ops.apply_rope(q, cos, sin), ops.apply_rope(k, cos, sin), v
