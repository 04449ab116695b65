"""A decoder's layers in one call: what pays where a step has few tokens.

A layer is nine operators. Called from Python one by one they cost about a tenth of a millisecond besides their work: at
one token a quarter of the whole. In one call they cost next to nothing. The results are those of the operators, bit for
bit; the residual stream is float32 whatever the weights are.

Does not do: a norm over all heads (OLMoE). There is no torch version: it needs the library.
"""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from miniserve.kernels.cpu.binding import BF16_OTHER, functions, unavailable
from miniserve.kernels.cpu.linear import KINDS, fits, torch_is_faster
from miniserve.kernels.cpu.moe import Experts
from miniserve.kernels.expert_stack import ExpertStack
from miniserve.kernels.linear_weight import LinearWeight

_P, _N = ctypes.c_void_p, ctypes.c_int64


@dataclass(frozen=True)
class Gated:
    """A dense feed-forward part: [2·I, H] and [H, I]."""

    gate_up: LinearWeight
    down: LinearWeight

    @property
    def products(self) -> list[LinearWeight]:
        """All of them."""
        return [self.gate_up, self.down]

    def fits(self, hidden: int) -> bool:
        """Whether the shapes go together."""
        return self.down.shape[0] == hidden and self.gate_up.shape == (2 * self.down.shape[1], hidden)


@dataclass(frozen=True)
class Mixture:
    """A mixture of experts: its router [E, H], stacks [E, 2·I, H] and [E, H, I], and how a token chooses.

    counts: [E] int64, contiguous, or none: there each step adds how many tokens each expert got.
    """

    router: LinearWeight
    gate_up: ExpertStack
    down: ExpertStack
    experts_per_token: int
    normalize: bool
    counts: Tensor | None = None

    @property
    def products(self) -> list[LinearWeight]:
        """All of them."""
        return [self.router, self.gate_up.matrix, self.down.matrix]

    def fits(self, hidden: int) -> bool:
        """Whether the shapes go together."""
        experts, _, inner = self.down.shape
        return (self.router.shape, self.gate_up.shape, self.down.shape) == (
            (experts, hidden),
            (experts, 2 * inner, hidden),
            (experts, hidden, inner),
        )


@dataclass(frozen=True)
class Layer:
    """One layer's weights: norms [H], norms of heads [D] if the model has them, attention's products, and the rest."""

    attention_norm: Tensor
    qkv: LinearWeight
    out: LinearWeight
    mlp_norm: Tensor
    feed_forward: Gated | Mixture
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None

    @property
    def products(self) -> list[LinearWeight]:
        """All of them."""
        return [self.qkv, self.out, *self.feed_forward.products]


class Paged(NamedTuple):
    """Where a step's tokens lie: what `ops.rope_store` and `ops.paged_attention` are told.

    slots [T] int64, query_start [B + 1], context_lens [B] and block_table [B, W] int32, all contiguous.
    """

    slots: Tensor
    query_start: Tensor
    context_lens: Tensor
    block_table: Tensor


#: Products of attention's weights with a step's tokens, in a layer, below which torch's faster ones do not make up for
#: Python between the operators. Measured in bfloat16 with AVX-512: hidden 256, 128 tokens (25e6): 24 ms here, 87 there;
#: hidden 576, 32 tokens (28e6): 54 and 53 ms, 64 tokens: 101 and 85.
SMALL = 26e6


class _Linear(ctypes.Structure):
    _fields_ = [(n, _N) for n in ("kind", "rows", "columns")] + [(p, _P) for p in ("data", "scales", "bias")]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((p, _P) for p in ("attention_norm", "mlp_norm", "q_norm", "k_norm")),
        *((linear, _Linear) for linear in ("qkv", "out", "gate_up", "down", "router")),
        ("experts", Experts),
        ("normalize", _N),
        ("counts", _P),
    ]


class _Model(ctypes.Structure):
    _fields_ = [("layers", _P), *((n, _N) for n in ("num_layers", "H", "N", "G", "D")), ("eps", ctypes.c_float)]


class _Step(ctypes.Structure):
    _fields_ = [
        *((p, _P) for p in ("x", "cos", "sin", "slots", "query_start", "context_lens", "block_table")),
        *((p, _P) for p in ("k_caches", "v_caches")),
        *((n, _N) for n in ("T", "B", "W", "S", "blocks", "cache_is_bf16")),
    ]


class Layers:
    """The layers of a decoder.

    Args:
        layers: their weights; kept, not copied, but for norms that are not float32.
        num_heads: query heads, N.
        kv_heads: key/value heads, G.
        head_dim: D, a multiple of 16.
        eps: of every norm.

    Raises:
        RuntimeError: there is no library on this machine.
        ValueError: sizes that the kernels do not take, or that do not fit together.
    """

    def __init__(self, layers: Sequence[Layer], *, num_heads: int, kv_heads: int, head_dim: int, eps: float) -> None:
        cpp = functions()
        if cpp is None:
            raise RuntimeError(unavailable())
        hidden, width = layers[0].out.shape[0], num_heads * head_dim
        expected = ((num_heads + 2 * kv_heads) * head_dim, hidden), (hidden, width)
        for layer in layers:
            if (layer.qkv.shape, layer.out.shape) != expected or not layer.feed_forward.fits(hidden):
                raise ValueError("the layers' weights do not fit together, or to the number and size of heads")
        if hidden % 16 or head_dim % 16 or num_heads % kv_heads or num_heads > 32 * kv_heads:
            raise ValueError(f"sizes {hidden} and {head_dim}: multiples of 16 are needed; groups up to 32")
        if not all(fits(weight) for layer in layers for weight in layer.products):
            raise ValueError("float32, bfloat16, int8 or 4-bit weights with rows of a multiple of 64 are needed")
        self._function = cpp.dense_layers
        self._qkv = layers[0].qkv
        self._attention_size = math.prod(layers[0].qkv.shape) + math.prod(layers[0].out.shape)
        self._kept: list[Tensor] = []
        self._layers = (_Layer * len(layers))(*map(self._layer, layers))
        sizes = (len(layers), hidden, num_heads, kv_heads, head_dim)
        self._model = _Model(ctypes.addressof(self._layers), *sizes, eps)

    def are_faster(self, tokens: int) -> bool:
        """Whether so many tokens are computed faster here than by the operators, which may use torch's products."""
        return not torch_is_faster(self._qkv, tokens) or tokens * self._attention_size < SMALL

    def __call__(
        self, x: Tensor, cos: Tensor, sin: Tensor, caches: Sequence[tuple[Tensor, Tensor]], paged: Paged
    ) -> Tensor:
        """Run a step through all layers; its keys and values go into the caches.

        Args:
            x: [T, H] float32, the embeddings; changed.
            cos, sin: [T, D/2] float32.
            caches: of each layer, keys and values [P, S, G, D], contiguous, float32 or bfloat16.
            paged: where the tokens lie.

        Returns:
            x, the residual stream after the last layer.

        Raises:
            ValueError: a slot, a length or the block table makes no sense.
        """
        k_caches, v_caches = ((_P * len(caches))(*(cache[i].data_ptr() for cache in caches)) for i in (0, 1))
        blocks, block_size = caches[0][0].shape[:2]
        step = _Step(
            *(part.data_ptr() for part in (x, cos, sin, *paged)),
            ctypes.addressof(k_caches),
            ctypes.addressof(v_caches),
            x.shape[0],
            *paged.block_table.shape,
            block_size,
            blocks,
            BF16_OTHER[caches[0][0].dtype],
        )
        if self._function(ctypes.byref(self._model), ctypes.byref(step), torch.get_num_threads()):
            raise ValueError("slots, lengths and block table do not fit together, or name what the cache does not have")
        return x

    def _layer(self, layer: Layer) -> _Layer:
        norms = (self._floats(norm) for norm in (layer.attention_norm, layer.mlp_norm, layer.q_norm, layer.k_norm))
        found, rest = _Layer(*norms, self._linear(layer.qkv), self._linear(layer.out)), layer.feed_forward
        if isinstance(rest, Gated):
            found.gate_up, found.down = self._linear(rest.gate_up), self._linear(rest.down)
            return found
        for stack in (rest.gate_up.matrix, rest.down.matrix):
            self._linear(stack)  # kept: `Experts` has their addresses
        found.router, found.normalize = self._linear(rest.router), rest.normalize
        found.experts = Experts.of(rest.gate_up, rest.down, rest.experts_per_token)
        found.counts = None if rest.counts is None else self._keep(rest.counts)
        return found

    def _floats(self, norm: Tensor | None) -> int | None:
        return None if norm is None else self._keep(norm.float().contiguous())

    def _linear(self, weight: LinearWeight) -> _Linear:
        bias = None if weight.bias is None else weight.bias.float().contiguous()
        parts = (None if part is None else self._keep(part) for part in (weight.data, weight.scales, bias))
        return _Linear(KINDS[weight.data.dtype], *weight.shape, *parts)

    def _keep(self, tensor: Tensor) -> int:
        """Its address, which stays its own as long as this object lives."""
        self._kept.append(tensor)
        return tensor.data_ptr()
