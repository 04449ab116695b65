"""`ModelConfig`: what the decoder needs to know about a model, and nothing else.

One frozen description for every family; families differ by values, not by subclasses. The readers (`config_hf`,
`config_gguf`) translate a file into it and refuse what it cannot say. A `ModelConfig` that exists is consistent:
`__post_init__` checks every size against its limit, so that no later code meets a zero, a negative or an absurd one.
Torch-free.
"""

from dataclasses import dataclass

from miniserve.errors import UnsupportedModelError

# Far above any published model: they bound the memory that a garbled file can ask for.
LIMITS = {
    "vocab_size": 2**21,
    "hidden_size": 2**17,
    "num_layers": 2**10,
    "num_heads": 2**11,
    "num_kv_heads": 2**11,
    "head_dim": 2**12,
    "intermediate_size": 2**20,
    "max_position_embeddings": 2**27,
    "num_experts": 2**12,
    "experts_per_token": 2**12,
}


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: pair i of a head turns by position / (theta^(2i/D) · divisors[i]).

    `divisors` is empty for plain RoPE. Models stretched to longer contexts (Llama 3.1's "llama3" scaling, GGUF's
    `rope_freqs` tensor) slow some pairs down; both come here as one number per pair, [head_dim / 2].
    """

    theta: float
    divisors: tuple[float, ...] = ()


@dataclass(frozen=True)
class MoE:
    """Sparse feed-forward layers: a router sends each token to `experts_per_token` of `num_experts`.

    Args:
        num_experts, experts_per_token: of each sparse layer.
        intermediate_size: width of one expert.
        normalize_weights: the chosen experts' weights are scaled to sum to 1.
        dense_layers: indices of the layers that have one dense feed-forward part instead.
    """

    num_experts: int
    experts_per_token: int
    intermediate_size: int
    normalize_weights: bool
    dense_layers: frozenset[int] = frozenset()


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder-only transformer. Sizes are counts, `rms_norm_eps` is dimensionless.

    Args:
        architecture: the family's name as the field writes it, e.g. "llama".
        vocab_size: rows of the embedding, padding included.
        hidden_size: width of what passes from layer to layer.
        num_heads, num_kv_heads: of queries, and of the keys and values that groups of them share.
        head_dim: width of one head.
        intermediate_size: width of a dense feed-forward layer; `moe.intermediate_size` is that of one expert.
        max_position_embeddings: longest sequence the model was made for, in tokens.
        rms_norm_eps: added to the mean square under each norm's root.
        rope: how positions turn queries and keys.
        qkv_bias: the query, key and value projections have a bias (Qwen2).
        qk_norm: RMSNorm of queries and keys before RoPE: "head" over each head (Qwen3), "row" over all heads (OLMoE).
        tie_embeddings: the output projection is the embedding matrix.
        moe: of a mixture of experts; None: all layers are dense.
        dtype: the dtype the weights are stored in, where the file says so.

    Raises:
        UnsupportedModelError: a size is out of range or the sizes do not fit together.

    Example:
        >>> from miniserve.model.config import ModelConfig, MoE, Rope
        >>> config = ModelConfig(
        ...     "qwen3_moe", vocab_size=1000, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16,
        ...     intermediate_size=128, max_position_embeddings=512, rms_norm_eps=1e-6, rope=Rope(theta=10_000.0),
        ...     moe=MoE(num_experts=8, experts_per_token=2, intermediate_size=32, normalize_weights=True),
        ... )
        >>> config.num_parameters(), config.num_active_parameters()
        (252224, 178496)
        >>> config.kv_bytes_per_token(bytes_per_element=2)
        256
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: Rope
    tie_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: str | None = None
    moe: MoE | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in LIMITS if hasattr(self, name)}
        if self.moe:
            sizes["num_experts"] = self.moe.num_experts
            sizes["experts_per_token"] = self.moe.experts_per_token
        for name, value in sizes.items():
            if not 1 <= value <= LIMITS[name]:
                raise UnsupportedModelError(f"{name} is {value}: it must lie between 1 and {LIMITS[name]}")
        if self.moe and not 1 <= self.moe.intermediate_size <= LIMITS["intermediate_size"]:
            raise UnsupportedModelError(f"an expert's intermediate_size is {self.moe.intermediate_size}")
        if self.num_heads % self.num_kv_heads:
            raise UnsupportedModelError(
                f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})"
            )
        if self.head_dim % 2:
            raise UnsupportedModelError(f"head_dim is {self.head_dim}: RoPE turns pairs, so it must be even")
        if self.rope.divisors and len(self.rope.divisors) != self.head_dim // 2:
            raise UnsupportedModelError(
                f"RoPE scaling has {len(self.rope.divisors)} factors, but head_dim {self.head_dim} "
                f"has {self.head_dim // 2} pairs"
            )
        if not (0 < self.rope.theta < float("inf") and all(0 < d < float("inf") for d in self.rope.divisors)):
            raise UnsupportedModelError(
                f"RoPE needs a finite theta and factors above zero, not theta {self.rope.theta}"
            )
        if not 0 <= self.rms_norm_eps < 1:
            raise UnsupportedModelError(f"rms_norm_eps is {self.rms_norm_eps}: it must lie in [0, 1)")
        if self.moe and self.moe.experts_per_token > self.moe.num_experts:
            raise UnsupportedModelError(
                f"experts_per_token ({self.moe.experts_per_token}) exceeds num_experts ({self.moe.num_experts})"
            )

    def is_sparse(self, layer: int) -> bool:
        """Whether the feed-forward part of `layer` is a mixture of experts."""
        return self.moe is not None and layer not in self.moe.dense_layers

    def num_parameters(self) -> int:
        """Every stored weight, counted once (tied embeddings once, all experts)."""
        return self._parameters(active_only=False)

    def num_active_parameters(self) -> int:
        """The weights one token passes through: of a layer's experts only those chosen for it."""
        return self._parameters(active_only=True)

    def kv_bytes_per_token(self, bytes_per_element: int) -> int:
        """What the keys and values of one token take over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * bytes_per_element

    def _parameters(self, active_only: bool) -> int:
        hidden, head_rows = self.hidden_size, (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        attention = head_rows * hidden + self.num_heads * self.head_dim * hidden + (head_rows if self.qkv_bias else 0)
        if self.qk_norm == "head":
            attention += 2 * self.head_dim
        elif self.qk_norm == "row":
            attention += (self.num_heads + self.num_kv_heads) * self.head_dim
        total = self.vocab_size * hidden * (1 if self.tie_embeddings else 2) + hidden
        for layer in range(self.num_layers):
            total += attention + 2 * hidden
            if self.moe and self.is_sparse(layer):
                experts = self.moe.experts_per_token if active_only else self.moe.num_experts
                total += self.moe.num_experts * hidden + experts * 3 * hidden * self.moe.intermediate_size
            else:
                total += 3 * hidden * self.intermediate_size
        return total
