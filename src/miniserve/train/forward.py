"""The decoder's forward pass over whole sequences, as training needs it.

It is the serving decoder's own modules, called in its order. Two things differ: nothing is written in place, since the
backward pass looks at what was; and attention sees complete sequences that all begin at their first token, and no
cache. With `recompute` a layer's activations are thrown away and computed again when the backward pass gets there
(Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"): what is kept is the stream between layers.

Letters in shapes: B sequences of S tokens, T = B · S; else as in the decoder.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from miniserve.kernels import reference
from miniserve.model.decoder import Decoder, DecoderLayer
from miniserve.model.mixture import SparseMLP


class Activations(NamedTuple):
    """What a loss is made of: logits [T, V], and of each sparse layer its router's scores [T, E]."""

    logits: Tensor
    router_logits: list[Tensor]


class WholeSequences:
    """`decoder.Attend` of B sequences of S tokens each: causal attention within each."""

    def __init__(self, num_sequences: int, kv_heads: int) -> None:
        self._sequences, self._kv_heads = num_sequences, kv_heads

    def __call__(self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # noqa: ARG002, all are alike
        """qkv [T, N + 2·G, D]; cos and sin [T, D/2] -> [T, N, D]."""
        q, k, v = torch.split(qkv, [qkv.shape[1] - 2 * self._kv_heads, self._kv_heads, self._kv_heads], dim=1)
        q, k = reference.apply_rope(q, cos, sin), reference.apply_rope(k, cos, sin)
        q, k, v = (part.view(self._sequences, -1, *part.shape[1:]).transpose(1, 2) for part in (q, k, v.contiguous()))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        return seen.transpose(1, 2).flatten(0, 1)


def forward(decoder: Decoder, token_ids: Tensor, *, recompute: bool = False) -> Activations:
    """token_ids [B, S] int64 -> logits of every token's successor, and the routers' scores."""
    positions = torch.arange(token_ids.shape[1], device=token_ids.device).repeat(len(token_ids))
    stream, cos, sin = decoder.begin(token_ids.flatten(), positions)
    attend = WholeSequences(len(token_ids), decoder.config.num_kv_heads)
    scores = []
    for layer in decoder.layers:
        assert isinstance(layer, DecoderLayer)
        if recompute:
            stream, found = checkpoint(_layer, layer, stream, cos, sin, attend, use_reentrant=False)
        else:
            stream, found = _layer(layer, stream, cos, sin, attend)
        scores += [] if found is None else [found]
    return Activations(decoder.logits(decoder.norm(stream)), scores)


def _layer(
    layer: DecoderLayer, stream: Tensor, cos: Tensor, sin: Tensor, attend: WholeSequences
) -> tuple[Tensor, Tensor | None]:
    """The stream behind a layer [T, H], and its router's scores."""
    stream = stream + layer.attention(layer.attention_norm(stream), cos, sin, attend)
    x, padding = layer.mlp_norm(stream), torch.zeros((len(stream), 1), dtype=torch.bool, device=stream.device)
    if not isinstance(layer.mlp, SparseMLP):
        return stream + layer.mlp(x, padding), None
    scores = layer.mlp.router(x)
    return stream + layer.mlp.mix(x, scores, padding), scores
