"""What each operator of a decoder's step costs one device: FLOPs, bytes, and bytes that cross its links.

FLOPs: two for each weight a row passes through (Kaplan et al. 2020, section 2.1), the unembedding only where a token is
sampled; attention 4 · heads · head_dim for each pair of a token and one it sees. Bytes: weights, KV and activations,
each once an operator. Collectives: what a ring sends, message · (n - 1) / n, twice that to reduce and give back. Which
experts a batch meets is an expectation over uniform, independent choices. No time: that is `roofline.py`'s.
"""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

from miniserve.hardware.shape import Experts, Parallel, Precision, Shape, number_format


class Part(NamedTuple):
    """One request's part of a step: `num_tokens` new tokens after `start` that are in the KV cache already.

    A token is chosen behind `sampled` of them: one, none in the middle of a prompt, or each where guesses are verified.
    """

    start: int
    num_tokens: int
    sampled: int = 1


class Parts(NamedTuple):
    """What attention needs to know of the requests of one kind."""

    requests: float = 0
    tokens: float = 0
    contexts: float = 0
    pairs: float = 0
    longest: float = 0

    @classmethod
    def of(cls, parts: Iterable[Part]) -> "Parts":
        """Totals."""
        requests = tokens = contexts = pairs = longest = 0
        for start, new, _ in parts:
            requests, tokens, contexts = requests + 1, tokens + new, contexts + start + new
            pairs += new * start + new * (new + 1) // 2
            longest = max(longest, start + new)
        return cls(requests, tokens, contexts, pairs, longest)


class Operator(NamedTuple):
    """One operator, done `times` times in a step.

    Attributes:
        name: what a reader calls it.
        kind: which curve times it: gemm, prefill_attention, decode_attention, moe, elementwise, all_reduce, all_gather
            or all_to_all.
        format: of the timings; `peak`: number format whose peak bounds its arithmetic.
        flops, weight_bytes, kv_bytes, activation_bytes, link_bytes: of doing it once.
        depth: what is gone through in sequence: a product's inner length, the longest context, the experts here, a
            message's bytes.
        head_dim: attention's; context: rows of KV read and written, mean of a request; ranks: of a collective.
    """

    name: str
    kind: str
    format: str
    peak: str
    times: float
    flops: float = 0.0
    weight_bytes: float = 0.0
    kv_bytes: float = 0.0
    activation_bytes: float = 0.0
    link_bytes: float = 0.0
    depth: float = 0.0
    head_dim: float = 1.0
    context: float = 1.0
    ranks: float = 1.0

    @property
    def bytes(self) -> float:
        """To and from memory, of doing it once."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes

    @property
    def intensity(self) -> float:
        """FLOPs for each byte from or to memory."""
        return self.flops / self.bytes if self.bytes else 0.0


def gemm(
    name: str,
    format: str,
    m: float,
    n: float,
    k: float,
    *,
    weight_bytes: float,
    activation_bytes: float,
    times: float = 1,
) -> Operator:
    """[m, k] · [k, n]; the second is a weight. Bytes are of one number; what enters has at most `format`'s."""
    entering = min(activation_bytes, number_format(format).bytes)
    return Operator(
        name,
        "gemm",
        format,
        number_format(format).peak,
        times,
        flops=2 * m * n * k,
        weight_bytes=k * n * weight_bytes,
        activation_bytes=m * k * entering + m * n * activation_bytes,
        depth=k,
    )


def attention(
    kind: str, shape: Shape, precision: Precision, parts: Parts, *, tensor: int = 1, times: float = 1
) -> Operator:
    """Paged attention of requests of one kind (prefill_attention or decode_attention), on one of `tensor` devices."""
    heads, kv_heads = shape.heads / tensor, max(1, shape.kv_heads / tensor)
    peak = number_format(precision.attention).peak
    return Operator(
        "prefill attention" if kind == "prefill_attention" else "decode attention",
        kind,
        precision.kv,
        peak,
        times,
        flops=4 * heads * shape.head_dim * parts.pairs,
        kv_bytes=2 * kv_heads * shape.head_dim * precision.kv_bytes * (parts.contexts + parts.tokens),
        activation_bytes=2 * heads * shape.head_dim * precision.activation_bytes * parts.tokens,
        depth=parts.longest,
        head_dim=shape.head_dim,
        context=(parts.contexts + parts.tokens) / parts.requests,
    )


def moe(
    precision: Precision, hidden: float, experts: Experts, tokens: float, *,
    held: float, met: float, tensor: int = 1, times: float = 1,
) -> Operator:  # fmt: skip
    """The experts' three products for `tokens` arrivals (a token counts once an expert it goes to) on one device.

    `held`: experts on this device; `met`: those of them that at least one token goes to.
    """
    width = experts.intermediate / tensor
    peak = number_format(precision.linear).peak
    return Operator(
        "experts",
        "moe",
        precision.linear,
        peak,
        times,
        flops=6 * tokens * hidden * width,
        weight_bytes=3 * met * hidden * width * precision.weight_bytes,
        activation_bytes=tokens * (2 * hidden + 3 * width) * precision.activation_bytes,
        depth=held,
    )


def collective(kind: str, message_bytes: float, ranks: float, *, times: float = 1) -> Operator:
    """all_reduce, all_gather, all_to_all or reduce_scatter of a message: as large as what one rank has in the end."""
    sent = message_bytes * (ranks - 1) / ranks * (2 if kind == "all_reduce" else 1)
    return Operator(
        kind.replace("_", "-"), kind, "any", "none", times, link_bytes=sent, depth=message_bytes, ranks=ranks
    )


def expected_experts(experts: Experts, tokens: float) -> float:
    """Distinct experts that `tokens` tokens meet, each choosing uniformly and for itself: E · (1 - (1 - k/E)^T)."""
    missed: float = (1 - experts.per_token / experts.count) ** tokens
    return experts.count * (1 - missed)


def step_operators(
    shape: Shape, parts: Iterable[Part], precision: Precision, parallel: Parallel | None = None
) -> list[Operator]:
    """Every operator of one step, as one device of `parallel` does it.

    Prefill, decode and a mixture are one thing: a part with one new token is a decode. With expert parallelism `parts`
    are one rank's, and every rank has as many.
    """
    parts = list(parts)
    decodes = Parts.of(part for part in parts if part.num_tokens == 1)
    prefills = Parts.of(part for part in parts if part.num_tokens > 1)
    return operators_of(shape, prefills, decodes, sum(part.sampled for part in parts), precision, parallel)


def operators_of(
    shape: Shape, prefills: Parts, decodes: Parts, samples: int, precision: Precision, parallel: Parallel | None = None
) -> list[Operator]:
    """As `step_operators`, for a caller that keeps totals: `samples` of the requests get a token."""
    parallel = parallel or Parallel()
    parallel.check(shape)
    tokens = decodes.tokens + prefills.tokens
    if not tokens:
        return []
    tensor, hidden, layers = parallel.tensor, shape.hidden, shape.layers
    width, heads = shape.head_dim, shape.heads / tensor
    kv_heads = max(1, shape.kv_heads / tensor)
    product = partial(gemm, m=tokens, weight_bytes=precision.weight_bytes, activation_bytes=precision.activation_bytes)
    operators = [
        Operator("embedding", "elementwise", "any", "none", 1,
                 weight_bytes=0 if shape.tied else tokens * hidden * precision.embedding_bytes,
                 activation_bytes=tokens * hidden * precision.activation_bytes),
        product("qkv", precision.linear, n=(heads + 2 * kv_heads) * width, k=hidden, times=layers),
        *(attention(kind, shape, precision, some, tensor=tensor, times=layers)
          for kind, some in (("prefill_attention", prefills), ("decode_attention", decodes)) if some.tokens),
        product("attention output", precision.linear, n=hidden, k=heads * width, times=layers),
    ]  # fmt: skip
    dense = layers - shape.sparse_layers
    if dense:
        operators += [
            product("gate and up", precision.linear, n=2 * shape.intermediate / tensor, k=hidden, times=dense),
            product("down", precision.linear, n=hidden, k=shape.intermediate / tensor, times=dense),
        ]
    if shape.experts and shape.sparse_layers:
        operators += _mixture(shape, shape.experts, precision, tokens, parallel)
    operators.append(_elementwise(shape, precision, tokens, heads + kv_heads, parallel))
    if samples:
        operators.append(
            gemm("unembedding", precision.unembedding, samples, shape.vocab / tensor, hidden,
                 weight_bytes=precision.unembedding_bytes, activation_bytes=precision.activation_bytes)
        )  # fmt: skip
    if tensor > 1:
        message = tokens * hidden * precision.activation_bytes
        operators.append(collective("all_reduce", message, tensor, times=2 * layers))
        if samples:
            operators.append(collective("all_gather", samples * shape.vocab * precision.activation_bytes, tensor))
    return operators


def _mixture(shape: Shape, experts: Experts, precision: Precision, tokens: float, parallel: Parallel) -> list[Operator]:
    ranks, layers = parallel.expert, shape.sparse_layers
    met = expected_experts(experts, tokens * ranks) / ranks
    operators = [
        gemm("router", precision.attention, tokens, experts.count, shape.hidden, times=layers,
             weight_bytes=precision.activation_bytes, activation_bytes=precision.activation_bytes),
        moe(precision, shape.hidden, experts, tokens * experts.per_token, held=experts.count / ranks, met=met,
            tensor=parallel.tensor, times=layers),
    ]  # fmt: skip
    if ranks > 1:
        # There and back: a token's row goes once to each of its experts.
        message = tokens * experts.per_token * shape.hidden * precision.activation_bytes
        operators.append(collective("all_to_all", message, ranks, times=2 * layers))
    return operators


def _elementwise(shape: Shape, precision: Precision, tokens: float, heads: float, parallel: Parallel) -> Operator:
    """A layer's two norms with their residuals, RoPE and the gate, each reading its inputs and writing its result."""
    width = shape.intermediate * (shape.layers - shape.sparse_layers) / shape.layers  # an expert's gate is its own
    row = 2 * 4 * shape.hidden + 2 * heads * shape.head_dim + 3 * width / parallel.tensor
    activations = tokens * row * precision.activation_bytes
    return Operator("elementwise", "elementwise", "any", "none", shape.layers, activation_bytes=activations)
