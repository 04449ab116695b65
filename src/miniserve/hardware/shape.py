"""What a decoder's cost depends on: its sizes, the number formats it is kept in, and how it is split over devices.

The hardware floor knows no models. A floor above turns a `ModelConfig` into a `Shape`. Norms' weights and biases are
left out: below 0.1% of the work in published models.
"""

from dataclasses import dataclass

from miniserve.errors import InvalidRequestError
from miniserve.hardware.formats import number_format


@dataclass(frozen=True)
class Experts:
    """A mixture's feed-forward layers: each token goes to `per_token` of `count` experts of width `intermediate`.

    `shared`: width of a part that every token goes through besides; 0: there is none.
    """

    count: int
    per_token: int
    intermediate: int
    shared: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.per_token <= self.count or self.intermediate < 1 or self.shared < 0:
            raise InvalidRequestError(
                f"a token cannot go to {self.per_token} of {self.count} experts of width {self.intermediate} "
                f"and a shared part of {self.shared}"
            )


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): of a token, one vector is kept for all
    heads, which their keys and values are made from, and one key that carries its position.

    Args:
        query_rank: width of what queries are made from; 0: of the hidden state itself.
        kv_rank: of the vector that is kept.
        rotary: columns of a query that carry its position, and of the key for them.
        plain: a query's other columns; `value`: those of a head's value.
    """

    query_rank: int
    kv_rank: int
    rotary: int
    plain: int
    value: int

    def __post_init__(self) -> None:
        if min(self.kv_rank, self.rotary, self.plain, self.value) < 1 or self.query_rank < 0:
            raise InvalidRequestError(f"{self}: its sizes are at least 1, but for the query's rank")

    @property
    def kept(self) -> int:
        """Numbers that a token adds to a layer's cache."""
        return self.kv_rank + self.rotary

    def parameters(self, hidden: int, heads: int) -> int:
        """Weights of one layer's attention."""
        queries = heads * (self.plain + self.rotary)
        down = self.query_rank * (hidden + queries) if self.query_rank else hidden * queries
        return down + hidden * self.kept + heads * (self.kv_rank * (self.plain + self.value) + self.value * hidden)


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes.

    Args:
        layers: how many.
        hidden, intermediate, vocab: widths of what passes between layers, of a dense feed-forward part, of the logits.
        heads, kv_heads, head_dim: query heads, heads of keys and values, and the width of each.
        tied: the unembedding is the embedding.
        experts: of a mixture; None: all layers are dense.
        dense_layers: of a mixture's layers, how many have one dense feed-forward part instead.
        latent: how keys and values are kept, if not as they are. Then `head_dim` is a query's columns, and `kv_heads`
            are as many as `heads`.
        query_rank: width of what queries are made from (Step-3, arXiv 2507.19427, section 3); 0: of the hidden state.

    Example:
        >>> from miniserve.simulate.models import shape_by_name
        >>> shape = shape_by_name("qwen3-30b-a3b")
        >>> f"{shape.parameters / 1e9:.1f} billion weights, {shape.active_parameters / 1e9:.1f} at work for a token"
        '30.5 billion weights, 3.0 at work for a token'
        >>> shape.experts
        Experts(count=128, per_token=8, intermediate=768, shared=0)
    """

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
    latent: Latent | None = None
    query_rank: int = 0

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocab"):
            if getattr(self, name) < 1:
                raise InvalidRequestError(f"{name} is {getattr(self, name)}: a decoder has at least 1")
        if not 0 <= self.dense_layers <= self.layers:
            raise InvalidRequestError(f"{self.dense_layers} of {self.layers} layers cannot be dense")
        if self.latent and (self.latent.plain + self.latent.rotary, self.heads) != (self.head_dim, self.kv_heads):
            raise InvalidRequestError(
                f"latent attention with {self.latent.plain} + {self.latent.rotary} columns of a query has head_dim "
                f"{self.latent.plain + self.latent.rotary} and as many kv_heads as heads, not {self.head_dim} and "
                f"{self.kv_heads} for {self.heads}"
            )

    @property
    def kv_elements(self) -> int:
        """Numbers of KV that one token adds, over all layers."""
        return self.layers * (self.latent.kept if self.latent else 2 * self.kv_heads * self.head_dim)

    @property
    def sparse_layers(self) -> int:
        """Layers whose feed-forward part is a mixture."""
        return self.layers - self.dense_layers if self.experts else 0

    @property
    def routed_parameters(self) -> int:
        """Weights of the experts that tokens are sent to."""
        experts = self.experts
        return 3 * self.sparse_layers * self.hidden * experts.count * experts.intermediate if experts else 0

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embedding, and as many of the unembedding if it is not tied."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """Weights of all matrices, tied embeddings once."""
        embeddings = self.embedding_parameters * (1 if self.tied else 2)
        return self.attention_parameters + self._feed_forward + self.routed_parameters + embeddings

    @property
    def active_parameters(self) -> int:
        """Weights that a token passes through: of its experts, not of all, and no embedding, which is looked up."""
        routed = self.routed_parameters * self.experts.per_token // self.experts.count if self.experts else 0
        return self.attention_parameters + self._feed_forward + routed + self.embedding_parameters

    @property
    def attention_parameters(self) -> int:
        """Weights of all layers' attention."""
        if self.latent:
            return self.layers * self.latent.parameters(self.hidden, self.heads)
        queries, kept = self.heads * self.head_dim, 2 * self.kv_heads * self.head_dim
        made = self.query_rank * (self.hidden + queries) if self.query_rank else self.hidden * queries
        return self.layers * (made + self.hidden * (kept + queries))

    @property
    def router_parameters(self) -> int:
        """Weights of all layers' routers."""
        return self.sparse_layers * self.hidden * self.experts.count if self.experts else 0

    @property
    def shared_parameters(self) -> int:
        """Weights of all mixtures' shared parts."""
        return 3 * self.sparse_layers * self.hidden * self.experts.shared if self.experts else 0

    @property
    def dense_parameters(self) -> int:
        """Weights of all dense feed-forward parts."""
        return 3 * (self.layers - self.sparse_layers) * self.hidden * self.intermediate

    @property
    def _feed_forward(self) -> int:
        """Weights of all layers' parts that every token goes through, the routers among them."""
        return self.dense_parameters + self.shared_parameters + self.router_parameters


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

    Example:
        >>> from miniserve.hardware.shape import Precision
        >>> fp8 = Precision.of("fp8", kv="fp8")
        >>> fp8.weight_bytes, fp8.activation_bytes, fp8.kv_bytes
        (1, 2, 1)
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

        Args:
            weights: "fp32", "tf32", "fp16", "bf16", "fp8", "fp8_block", "int8", "nvfp4" or "mxfp4".
            kv: of keys and values; None: as the activations are.

        Raises:
            InvalidRequestError: there is no such format.
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
    """How one copy of the model is split: `tensor` devices share each layer, `expert` ranks share out the experts.

    Expert parallelism: every rank has its own requests and the whole of attention; tokens travel to their experts.
    `redundant` experts are there twice, so that ranks may hold equally many, and as busy ones.

    Example:
        >>> from miniserve.hardware.shape import Parallel
        >>> Parallel(tensor=2, expert=4).num_devices
        8
    """

    tensor: int = 1
    expert: int = 1
    redundant: int = 0

    @property
    def num_devices(self) -> int:
        """Of all ranks."""
        return self.tensor * self.expert

    def held(self, experts: Experts) -> float:
        """Experts of a layer that one rank has, copies among them."""
        return (experts.count + self.redundant) / self.expert

    def check(self, shape: Shape) -> None:
        """Raise InvalidRequestError, naming the size, where `shape` cannot be split so."""
        if self.tensor < 1 or self.expert < 1:
            raise InvalidRequestError(f"parallel degrees must be 1 or more, not {self.tensor} and {self.expert}")
        sizes = {"heads": shape.heads, "intermediate": shape.intermediate, "vocab": shape.vocab}
        if shape.experts:
            sizes["experts' intermediate"] = shape.experts.intermediate
            sizes["the shared expert's intermediate"] = shape.experts.shared
        for name, size in sizes.items():
            if size % self.tensor:
                raise InvalidRequestError(f"{name} ({size}) cannot be split over {self.tensor} devices")
        if max(shape.kv_heads, self.tensor) % min(shape.kv_heads, self.tensor):
            raise InvalidRequestError(
                f"kv_heads ({shape.kv_heads}) and {self.tensor} devices: neither divides the other"
            )
        if not shape.experts:
            if self.expert > 1 or self.redundant:
                raise InvalidRequestError("expert parallelism needs a model with experts")
            return
        if not 0 <= self.redundant <= shape.experts.count or (self.redundant and self.expert == 1):
            raise InvalidRequestError(
                f"{self.redundant} redundant experts: there may be up to {shape.experts.count}, on more than one rank"
            )
        if (shape.experts.count + self.redundant) % self.expert:
            copies = f" and {self.redundant} copies" if self.redundant else ""
            raise InvalidRequestError(
                f"experts ({shape.experts.count}{copies}) cannot be split over {self.expert} devices"
            )
