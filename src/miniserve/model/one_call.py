"""`OneCall`: a decoder on a CPU, all its layers in one call of the C++ kernels.

It computes what `Decoder.forward` computes with the CPU's operators and a paged cache, bit for bit, without the time
that Python takes between them: at one token a quarter of the whole. It shares the decoder's weights.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import Module

from miniserve.kernels.cpu import ops as cpu_ops
from miniserve.kernels.cpu.binding import unavailable
from miniserve.kernels.cpu.dense import Gated, Layer, Layers, Mixture, Paged
from miniserve.model.decoder import Decoder, DecoderLayer, DenseMLP
from miniserve.model.mixture import SparseMLP


class OneCall:
    """See above.

    Args:
        decoder: whose layers they are.
        layers: the same in the kernels' form.
    """

    def __init__(self, decoder: Decoder, layers: Layers) -> None:
        self._decoder, self._layers = decoder, layers

    @classmethod
    def of(cls, decoder: Decoder) -> "OneCall | None":
        """None where the decoder is of another backend, or of a shape that the call does not take (OLMoE).

        Nor for one rank's slice, or one side: what the ranks exchange lies between the operators.
        """
        config = decoder.config
        if decoder.communicator.size > 1 or not decoder.is_whole:
            return None
        if decoder.ops is not cpu_ops or unavailable() or config.qk_norm == "row":
            return None
        sizes = {"num_heads": config.num_heads, "kv_heads": config.num_kv_heads, "head_dim": config.head_dim}
        try:
            layers = Layers([*map(_layer, decoder.layers)], **sizes, eps=config.rms_norm_eps)
        except ValueError:  # sizes that are no multiple of what the vector unit takes
            return None
        return cls(decoder, layers)

    def is_faster(self, tokens: int) -> bool:
        """Whether it is the faster way for a step of so many tokens."""
        return self._layers.are_faster(tokens)

    def __call__(
        self, token_ids: Tensor, positions: Tensor, caches: Sequence[tuple[Tensor, Tensor]], paged: Paged
    ) -> Tensor:
        """token_ids and positions [T] int64 -> the last hidden state of every token [T, H], normalised.

        Args:
            token_ids, positions: as `Decoder.forward` takes them.
            caches: of each layer, keys and values [P, S, G, D]; the tokens' own are written.
            paged: where the tokens lie.
        """
        x, cos, sin = self._decoder.begin(token_ids, positions)
        normed: Tensor = self._decoder.norm(self._layers(x, cos, sin, caches, paged))
        return normed


def _layer(layer: Module) -> Layer:
    assert isinstance(layer, DecoderLayer)
    attention = layer.attention
    per_head = attention.qk_norm is not None
    return Layer(
        attention_norm=layer.attention_norm.weight,
        qkv=attention.qkv.matrix,
        out=attention.out.matrix,
        mlp_norm=layer.mlp_norm.weight,
        feed_forward=_feed_forward(layer.mlp),
        q_norm=attention.q_norm.weight if per_head else None,
        k_norm=attention.k_norm.weight if per_head else None,
    )


def _feed_forward(mlp: DenseMLP | SparseMLP) -> Gated | Mixture:
    if isinstance(mlp, DenseMLP):
        return Gated(mlp.gate_up.matrix, mlp.down.matrix)
    moe, counts = mlp.moe, None if mlp.counts is None else mlp.counts[1:]
    return Mixture(mlp.router.matrix, *mlp.stacks, moe.experts_per_token, moe.normalize_weights, counts)
