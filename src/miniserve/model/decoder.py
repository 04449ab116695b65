"""The decoder: token ids in, logits out, for every family that `ModelConfig` can describe.

It works on flat tensors: T tokens in one row, whatever sequences they belong to. Only attention knows about sequences
and caches, so it is passed in: `attend(layer, q, k, v)` stores the new keys and values where it likes and returns what
the queries see. Everything else here treats each token alone. The decoder keeps no state between calls and reads no
global one. Weights are left uninitialised; `weights.load_weights` fills them.

Letters in shapes: T tokens, H hidden size, N query heads, G key/value heads, D head dimension, I intermediate size,
V vocabulary, E experts.
"""

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniserve.kernels import reference as ops
from miniserve.model.config import ModelConfig, MoE


class Attend(Protocol):
    """Causal attention of T new tokens over their sequences' past."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [T, N, D], k and v [T, G, D], keys already rotated -> [T, N, D]."""
        ...


class Placement(NamedTuple):
    """What every weight of a decoder shares."""

    dtype: torch.dtype
    device: torch.device

    def parameter(self, *shape: int) -> nn.Parameter:
        """An uninitialised weight."""
        return nn.Parameter(torch.empty(shape, dtype=self.dtype, device=self.device))


class Linear(nn.Module):
    """y = x Wᵀ + b with W [out, in], uninitialised."""

    def __init__(self, inputs: int, outputs: int, place: Placement, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = place.parameter(outputs, inputs)
        self.bias = place.parameter(outputs) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return F.linear(x, self.weight, self.bias)


class RMSNorm(nn.Module):
    """`ops.rms_norm` with its weight."""

    def __init__(self, size: int, eps: float, place: Placement) -> None:
        super().__init__()
        self.weight = place.parameter(size)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] -> [..., size]."""
        return ops.rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention: one fused projection to queries, keys and values, RoPE, `attend`, output projection."""

    def __init__(self, config: ModelConfig, layer: int, place: Placement) -> None:
        super().__init__()
        heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.layer, self.qk_norm, self.head_dim = layer, config.qk_norm, dim
        self.sizes = [heads * dim, kv_heads * dim, kv_heads * dim]
        self.qkv = Linear(config.hidden_size, sum(self.sizes), place, bias=config.qkv_bias)
        self.out = Linear(heads * dim, config.hidden_size, place)
        if config.qk_norm:
            per_head = config.qk_norm == "head"
            self.q_norm = RMSNorm(dim if per_head else self.sizes[0], config.rms_norm_eps, place)
            self.k_norm = RMSNorm(dim if per_head else self.sizes[1], config.rms_norm_eps, place)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """x [T, H]; cos and sin [T, D/2] -> [T, H]."""
        q, k, v = self.qkv(x).split(self.sizes, dim=-1)
        if self.qk_norm == "row":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in (q, k, v))
        if self.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        seen = attend(self.layer, ops.apply_rope(q, cos, sin), ops.apply_rope(k, cos, sin), v)
        return self.out(seen.flatten(-2))


class DenseMLP(nn.Module):
    """The gated feed-forward layer: down(SiLU(gate x) · up x), gate and up fused."""

    def __init__(self, config: ModelConfig, place: Placement) -> None:
        super().__init__()
        self.gate_up = Linear(config.hidden_size, 2 * config.intermediate_size, place)
        self.down = Linear(config.intermediate_size, config.hidden_size, place)

    def forward(self, x: Tensor) -> Tensor:
        """[T, H] -> [T, H]."""
        return self.down(ops.silu_mul(self.gate_up(x)))


class SparseMLP(nn.Module):
    """A mixture of experts: a router, and E feed-forward layers stacked as gate_up [E, 2·I, H] and down [E, H, I]."""

    def __init__(self, config: ModelConfig, moe: MoE, place: Placement) -> None:
        super().__init__()
        experts, hidden, inner = moe.num_experts, config.hidden_size, moe.intermediate_size
        self.moe = moe
        self.router = Linear(hidden, experts, place)
        self.gate_up = place.parameter(experts, 2 * inner, hidden)
        self.down = place.parameter(experts, hidden, inner)

    def forward(self, x: Tensor) -> Tensor:
        """[T, H] -> [T, H]."""
        weights, expert_ids = ops.route(self.router(x), self.moe.experts_per_token, self.moe.normalize_weights)
        return ops.moe(x, weights, expert_ids, self.gate_up, self.down)


class DecoderLayer(nn.Module):
    """Attention, then feed-forward; each reads a normalised copy of the residual stream and adds to it."""

    def __init__(self, config: ModelConfig, layer: int, place: Placement) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, place)
        self.attention = Attention(config, layer, place)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, place)
        sparse = config.moe if config.is_sparse(layer) else None
        self.mlp = SparseMLP(config, sparse, place) if sparse else DenseMLP(config, place)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """The residual stream [T, H] -> [T, H]."""
        x = x + self.attention(self.attention_norm(x), cos, sin, attend)
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nn.Module):
    """A whole decoder-only transformer.

    Args:
        config: its shape.
        dtype: of weights and activations: float32, bfloat16 or float16.
        device: where the weights live.
    """

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.config, self.dtype, self.device = config, dtype, device
        place = Placement(dtype, device)
        self.embed = place.parameter(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer, place) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, place)
        self.unembed = self.embed if config.tie_embeddings else place.parameter(config.vocab_size, config.hidden_size)
        self.inverse_frequencies = rope_frequencies(config).to(device)

    def forward(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """token_ids and positions [T] int64 -> the last hidden state of every token [T, H], normalised."""
        angles = positions[:, None].float() * self.inverse_frequencies
        cos, sin = angles.cos(), angles.sin()
        x = F.embedding(token_ids, self.embed)
        for layer in self.layers:
            x = layer(x, cos, sin, attend)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every vocabulary entry: [R, H] -> [R, V] float32. Pass only the rows that need them."""
        return F.linear(hidden, self.unembed).float()


def rope_frequencies(config: ModelConfig) -> Tensor:
    """How far each RoPE pair turns per position, in radians: theta^(-2i/D) / divisors[i], [D/2] float32."""
    exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    frequencies = 1.0 / config.rope.theta**exponents
    if config.rope.divisors:
        frequencies = frequencies / torch.tensor(config.rope.divisors)
    return frequencies
