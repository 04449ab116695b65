"""What a decoder's cost depends on: its sizes, the number formats it is kept in, and how it is split over devices.

The hardware floor knows no models. A floor above turns a `ModelConfig` into a `Shape`. Norms' weights and biases are
left out: below 0.1% of the work in published models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from miniserve.errors import InvalidRequestError


class Format(NamedTuple):
    """A number format: bytes of one weight with its share of the scales, and the peak it computes at."""

    bytes: float
    peak: str


#: By the name that its kernels' timings go by. Blocks: one scale of 4 bytes for 128 × 128, of 1 byte for 16 or for 32.
FORMATS: Mapping[str, Format] = {
    "fp32": Format(4, "fp32"),
    "tf32": Format(4, "tf32"),
    "fp16": Format(2, "fp16"),
    "bf16": Format(2, "bf16"),
    "fp8": Format(1, "fp8"),
    "fp8_block": Format(1 + 4 / 128**2, "fp8"),
    "int8": Format(1, "int8"),
    "nvfp4": Format(0.5 + 1 / 16, "fp4"),
    "mxfp4": Format(0.5 + 1 / 32, "fp4"),
}


def number_format(name: str) -> Format:
    """The format called `name`. Raises InvalidRequestError, with those there are, for another."""
    if name not in FORMATS:
        raise InvalidRequestError(f"no number format '{name}'; there is {', '.join(FORMATS)}")
    return FORMATS[name]


@dataclass(frozen=True)
class Experts:
    """A mixture's feed-forward layers: each token goes to `per_token` of `count` experts of width `intermediate`."""

    count: int
    per_token: int
    intermediate: int


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes. `dense_layers`: of a mixture's layers, how many have one dense feed-forward part instead."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool = False
    experts: Experts | None = None
    dense_layers: int = 0

    @property
    def kv_elements(self) -> int:
        """Numbers of KV that one token adds, over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def sparse_layers(self) -> int:
        """Layers whose feed-forward part is a mixture."""
        return self.layers - self.dense_layers if self.experts else 0

    @property
    def parameters(self) -> int:
        """Weights of all matrices, tied embeddings once."""
        attention = (2 * self.heads + 2 * self.kv_heads) * self.head_dim * self.hidden
        dense = 3 * self.hidden * self.intermediate
        sparse = 0
        if self.experts:
            sparse = self.hidden * self.experts.count * (1 + 3 * self.experts.intermediate)
        feed_forward = (self.layers - self.sparse_layers) * dense + self.sparse_layers * sparse
        return self.layers * attention + feed_forward + self.vocab * self.hidden * (1 if self.tied else 2)


@dataclass(frozen=True)
class Precision:
    """Bytes of a number of each kind, and what computes.

    Args:
        linear: format that the layers' products are computed in, a key of `FORMATS`.
        unembedding: format that the unembedding's is.
        attention: format of attention's arithmetic.
        kv: format that keys and values are kept in.
        weight_bytes, unembedding_bytes, embedding_bytes: of one weight in the layers, in the unembedding, and in an
            embedding of its own.
        activation_bytes: of one activation.
    """

    linear: str
    unembedding: str
    attention: str
    kv: str
    weight_bytes: float
    unembedding_bytes: float
    embedding_bytes: float
    activation_bytes: float

    @classmethod
    def of(cls, weights: str = "bf16", kv: str | None = None) -> "Precision":
        """The layers' weights in one format; where that has 8 bits or fewer, everything else in bfloat16.

        KV is as `kv` says, or as the activations are.
        """
        rest = weights if number_format(weights).bytes >= 2 else "bf16"
        size = number_format(rest).bytes
        number_format(kv or rest)
        return cls(weights, rest, rest, kv or rest, number_format(weights).bytes, size, size, size)

    @property
    def kv_bytes(self) -> float:
        """Of one number of keys or values."""
        return number_format(self.kv).bytes


@dataclass(frozen=True)
class Parallel:
    """How one copy of the model is split: `tensor` devices share each layer, `expert` devices share out the experts.

    Expert parallelism: every rank has its own requests and the whole of attention; tokens travel to their experts.
    """

    tensor: int = 1
    expert: int = 1

    def check(self, shape: Shape) -> None:
        """Raise InvalidRequestError, naming the size, where `shape` cannot be split so."""
        if self.tensor < 1 or self.expert < 1:
            raise InvalidRequestError(f"parallel degrees must be 1 or more, not {self.tensor} and {self.expert}")
        sizes = {"heads": shape.heads, "intermediate": shape.intermediate, "vocab": shape.vocab}
        if shape.experts:
            sizes["experts' intermediate"] = shape.experts.intermediate
        for name, size in sizes.items():
            if size % self.tensor:
                raise InvalidRequestError(f"{name} ({size}) cannot be split over {self.tensor} devices")
        if max(shape.kv_heads, self.tensor) % min(shape.kv_heads, self.tensor):
            raise InvalidRequestError(
                f"kv_heads ({shape.kv_heads}) and {self.tensor} devices: neither divides the other"
            )
        if self.expert > 1 and not shape.experts:
            raise InvalidRequestError("expert parallelism needs a model with experts")
        if shape.experts and shape.experts.count % self.expert:
            raise InvalidRequestError(f"experts ({shape.experts.count}) cannot be split over {self.expert} devices")
