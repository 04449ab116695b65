"""The decoder: token ids in, logits out, for every family that `ModelConfig` can describe.

It works on flat tensors: T tokens in one row, whatever sequences they belong to. Only attention knows about sequences
and caches, so it is passed in: `attend` rotates queries and keys, stores the new keys and values where it likes and
returns what the queries see. Everything else here treats each token alone. The decoder keeps no state between calls and
reads no global one; its operators come from the backend it was made with. It may be one rank's slice of a model: then
its `communicator` adds the ranks' parts up, twice a layer; or, of a mixture whose experts are shared out whole, carries
tokens to them (`mixture`, `expert_parallel`). Weights are left uninitialised; `weights.load_weights` fills them.

Each layer leaves what its feed-forward part adds to the residual stream for the next norm to add, because adding and
normalising belong together (`reference.add_rms_norm`).

Letters in shapes: T tokens, H hidden size, N query heads, G key/value heads, D head dimension, I intermediate size,
V vocabulary, E experts.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniserve.kernels import reference
from miniserve.kernels.operators import Operators
from miniserve.model.communicator import ALONE, Communicator
from miniserve.model.config import ModelConfig
from miniserve.model.expert_plan import ExpertPlan
from miniserve.model.layers import Linear, Placement, RMSNorm
from miniserve.model.mixture import SparseMLP


class Attend(Protocol):
    """Rotary position embedding, then causal attention of T new tokens over their sequences' past."""

    def __call__(self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """qkv [T, N + 2·G, D], the heads of queries, keys and values; cos and sin [T, D/2] -> [T, N, D]."""
        ...


class Attention(nn.Module):
    """Grouped-query attention: one fused projection to queries, keys and values, `attend`, output projection."""

    def __init__(self, config: ModelConfig, layer: int, place: Placement) -> None:
        super().__init__()
        heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.layer, self.qk_norm, self.head_dim, self.communicator = layer, config.qk_norm, dim, place.communicator
        self.sizes = [heads * dim, kv_heads * dim, kv_heads * dim]
        self.qkv = Linear(config.hidden_size, sum(self.sizes), place, bias=config.qkv_bias)
        self.out = Linear(heads * dim, config.hidden_size, place)
        if config.qk_norm:
            per_head = config.qk_norm == "head"
            self.q_norm = RMSNorm(dim if per_head else self.sizes[0], config.rms_norm_eps, place)
            self.k_norm = RMSNorm(dim if per_head else self.sizes[1], config.rms_norm_eps, place)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """x [T, H]; cos and sin [T, D/2] -> [T, H]."""
        qkv = self.qkv(x)
        if self.qk_norm:
            q, k, v = qkv.split(self.sizes, dim=-1)
            qkv = torch.cat((self._normalise(self.q_norm, q), self._normalise(self.k_norm, k), v), dim=-1)
        seen = attend(self.layer, qkv.view(len(x), -1, self.head_dim), cos, sin)
        return self.communicator.all_reduce(self.out(seen.flatten(-2)))

    def _normalise(self, norm: RMSNorm, x: Tensor) -> Tensor:
        if self.qk_norm == "row":
            return norm.of_slice(x, self.communicator)
        return norm(x.reshape(len(x), -1, self.head_dim)).flatten(-2)


class DenseMLP(nn.Module):
    """The gated feed-forward layer: down(SiLU(gate x) · up x), gate and up fused."""

    def __init__(self, config: ModelConfig, place: Placement) -> None:
        super().__init__()
        self.gate_up = Linear(config.hidden_size, 2 * config.intermediate_size, place)
        self.down = Linear(config.intermediate_size, config.hidden_size, place)
        self.ops, self.communicator = place.ops, place.communicator

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:  # noqa: ARG002
        """x [T, H] -> [T, H]. A row of padding is a row like any other."""
        return self.communicator.all_reduce(self.down(self.ops.silu_mul(self.gate_up(x))))


class DecoderLayer(nn.Module):
    """Attention, then feed-forward; each reads a normalised copy of the residual stream and adds to it."""

    def __init__(self, config: ModelConfig, layer: int, place: Placement, experts: ExpertPlan | None) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, place)
        self.attention = Attention(config, layer, place)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, place)
        sparse = config.moe if config.is_sparse(layer) else None
        held = experts.layers[layer] if experts else ()
        self.mlp = SparseMLP(config, sparse, place, held) if sparse else DenseMLP(config, place)

    def forward(
        self, stream: Tensor, added: Tensor | None, cos: Tensor, sin: Tensor, padding: Tensor, attend: Attend
    ) -> Tensor:
        """The residual stream, changed in place; what is still to be added to it, before and after. [T, H] each."""
        x = self.attention(self.attention_norm.add(stream, added), cos, sin, attend)
        return self.mlp(self.mlp_norm.add(stream, x), padding)


class Decoder(nn.Module):
    """A whole decoder-only transformer. Where embedding and unembedding are one matrix, it is `unembed`'s.

    Args:
        config: its shape.
        dtype: of the weights that are not packed: float32, bfloat16 or float16.
        device: where the weights live.
        ops: the backend.
        compute_dtype: of the activations; None: that of the weights.
        communicator: to the other ranks, if this is one's slice of a model; then `config` is the slice's.
        experts: which rank holds which, if they are shared out whole.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: torch.dtype,
        device: torch.device,
        ops: Operators = reference,
        compute_dtype: torch.dtype | None = None,
        communicator: Communicator = ALONE,
        experts: ExpertPlan | None = None,
    ) -> None:
        super().__init__()
        self.config, self.dtype, self.device, self.ops = config, dtype, device, ops
        self.communicator, self.experts = communicator, experts
        self.compute_dtype = compute_dtype or dtype
        place = Placement(dtype, device, ops, communicator)
        self.embed = None if config.tie_embeddings else place.parameter(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer, place, experts) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, place)
        self.unembed = Linear(config.hidden_size, config.vocab_size, place)
        self.inverse_frequencies = rope_frequencies(config).to(device)

    def forward(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """token_ids and positions [T] int64 -> the last hidden state of every token [T, H], normalised.

        A position of -1 marks padding, whose hidden state means nothing.
        """
        stream, cos, sin = self.begin(token_ids, positions)
        padding, added = (positions < 0)[:, None], None
        for layer in self.layers:
            added = layer(stream, added, cos, sin, padding, attend)
        return self.norm.add(stream, added)

    def begin(self, token_ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the layers start from: the tokens' embeddings [T, H], and cosine and sine of RoPE's angles [T, D/2]."""
        angles = positions[:, None].float() * self.inverse_frequencies
        x = self.unembed.matrix.rows(token_ids) if self.embed is None else F.embedding(token_ids, self.embed)
        return x.to(self.compute_dtype), angles.cos(), angles.sin()

    @property
    def is_whole(self) -> bool:
        """Whether all its parameters are here, none on torch's meta device; see `sides`."""
        return not any(parameter.is_meta for parameter in self.parameters())

    @property
    def mixtures(self) -> list[SparseMLP]:
        """The feed-forward parts that have experts, from the first layer on."""
        return [module for module in self.modules() if isinstance(module, SparseMLP)]

    def count_experts(self) -> Tensor:
        """Have each step add, from now on, how many tokens each expert of each such layer got: see `SparseMLP.counts`.

        Returns:
            [layers with experts, E + 1] int64, on the decoder's device; it goes on counting.
        """
        mixtures, moe = self.mixtures, self.config.moe
        counts = torch.zeros((len(mixtures), moe.num_experts + 1 if moe else 0), dtype=torch.int64, device=self.device)
        for mixture, row in zip(mixtures, counts, strict=True):
            mixture.counts = row
        return counts

    @property
    def weight_bytes(self) -> int:
        """Memory of all weights but an embedding of its own, of which a token needs one row."""
        linears = [module for module in self.modules() if isinstance(module, Linear)]
        packed = sum(stack.nbytes for module in self.mixtures for stack in module.packed)
        counted = {id(parameter) for linear in linears for parameter in linear.parameters()}
        others = (p for p in self.parameters() if p is not self.embed and id(p) not in counted)
        return sum(linear.matrix.nbytes for linear in linears) + sum(p.nbytes for p in others) + packed

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every vocabulary entry: [R, H] -> [R, V] float32. Pass only the rows that need them."""
        return self.unembed(hidden).float()


def rope_frequencies(config: ModelConfig) -> Tensor:
    """How far each RoPE pair turns per position, in radians: theta^(-2i/D) / divisors[i], [D/2] float32."""
    exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    frequencies = 1.0 / config.rope.theta**exponents
    if config.rope.divisors:
        frequencies = frequencies / torch.tensor(config.rope.divisors)
    return frequencies
