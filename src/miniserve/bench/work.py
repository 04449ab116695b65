"""How much a step has to do at least: bytes from memory and FLOPs. What a share of the limit is a share of.

Bytes: every active weight once (of an untied embedding only the rows looked up), the KV of every context once, the new
KV written. FLOPs: two for each weight a token passes through, the unembedding only where a token is sampled, and
attention's 4 · heads · head_dim for each pair of a token and one it sees (Kaplan et al. 2020, section 2.1).
"""

from collections.abc import Iterable
from typing import NamedTuple

from miniserve.core.metrics import PartRecord
from miniserve.model.config import ModelConfig
from miniserve.model.decoder import Decoder


class Work(NamedTuple):
    """Bytes moved and floating-point operations done."""

    bytes: float
    flops: float


class WeightBytes(NamedTuple):
    """Bytes of a weight as stored: on average in the layers, in the unembedding, and in an embedding of its own."""

    layers: float
    unembedding: float
    embedding: float

    @classmethod
    def of(cls, decoder: Decoder) -> "WeightBytes":
        """Those of a decoder."""
        config, unembedding = decoder.config, decoder.unembed.matrix.nbytes
        size = config.vocab_size * config.hidden_size
        in_layers = config.num_parameters() - size * (1 if config.tie_embeddings else 2)
        return cls((decoder.weight_bytes - unembedding) / in_layers, unembedding / size, decoder.dtype.itemsize)


def step_work(config: ModelConfig, parts: Iterable[PartRecord], weights: WeightBytes, bytes_per_kv: int) -> Work:
    """The least that a step with these parts must move and compute.

    Args:
        config: the model.
        parts: the step's.
        weights: bytes of each.
        bytes_per_kv: of one element of keys or values.
    """
    parts = list(parts)
    num_tokens, samples = sum(part.num_tokens for part in parts), sum(part.sampled for part in parts)
    unembedding = config.vocab_size * config.hidden_size
    layers = config.num_active_parameters() - unembedding * (1 if config.tie_embeddings else 2)
    contexts = sum(part.start + part.num_tokens for part in parts)
    pairs = sum(part.num_tokens * part.start + part.num_tokens * (part.num_tokens + 1) // 2 for part in parts)
    looked_up = 0 if config.tie_embeddings else num_tokens * config.hidden_size
    return Work(
        layers * weights.layers
        + (unembedding * weights.unembedding if samples else 0)
        + looked_up * weights.embedding
        + (contexts + num_tokens) * config.kv_bytes_per_token(bytes_per_kv),
        2 * layers * num_tokens
        + 2 * unembedding * samples
        + 4 * config.num_layers * config.num_heads * config.head_dim * pairs,
    )
