"""What an operator costs one device: FLOPs, bytes, and bytes that cross its links.

FLOPs: two for each weight a row passes through (Kaplan et al. 2020, section 2.1), the unembedding only where a token is
sampled; attention 4 · heads · head_dim for each pair of a token and one it sees. Bytes: weights, KV and activations,
each once an operator. Collectives: what a ring sends, message · (n - 1) / n, twice that to reduce and give back. Which
experts a batch meets is an expectation over uniform, independent choices. Which operators a step has is `step.py`'s to
say, and how long they take `roofline.py`'s.
"""

from collections.abc import Iterable
from typing import NamedTuple

from miniserve.hardware.formats import number_format
from miniserve.hardware.shape import Experts, Precision, Shape


class Part(NamedTuple):
    """One request's part of a step: `num_tokens` new tokens after `start` that are in the KV cache already.

    A token is chosen behind `sampled` of them: one, none in the middle of a prompt, or each where guesses are verified.
    """

    start: int
    num_tokens: int
    sampled: int = 1

    @property
    def is_decode(self) -> bool:
        """Whether decode's kernels compute it: one token, or one and guesses of what follows."""
        return self.num_tokens in (1, self.sampled)


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
        kind: which curve times it: gemm, prefill_attention, decode_attention, latent_attention, moe, elementwise,
            all_reduce, all_gather or all_to_all.
        format: of the timings; `peak`: number format whose peak bounds its arithmetic.
        flops, weight_bytes, kv_bytes, activation_bytes, link_bytes: of doing it once.
        depth: what is gone through in sequence: a product's inner length, the longest context, the experts here, a
            message's bytes.
        head_dim: attention's; context: rows of KV read and written, mean of a request.
        ranks: of a collective; each is a group of `stride` devices, which all have what it sends and need what comes.

    Example:
        >>> from miniserve.hardware.cost import collective, gemm
        >>> product = gemm("up", "bf16", m=16, n=12288, k=4096, weight_bytes=2, activation_bytes=2)
        >>> product.flops, product.bytes, round(product.intensity, 1)
        (1610612736, 101187584.0, 15.9)
        >>> collective("all_reduce", message_bytes=1e6, ranks=4).link_bytes
        1500000.0
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
    stride: float = 1.0

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


def collective(
    kind: str, message_bytes: float, ranks: float, *, name: str = "", stride: float = 1, times: float = 1
) -> Operator:
    """all_reduce, all_gather, all_to_all or reduce_scatter of a message: as large as what one rank has in the end."""
    sent = message_bytes * (ranks - 1) / ranks * (2 if kind == "all_reduce" else 1)
    return Operator(
        name or kind.replace("_", "-"), kind, "any", "none", times,
        link_bytes=sent, depth=message_bytes, ranks=ranks, stride=stride,
    )  # fmt: skip


def expected_experts(experts: Experts, tokens: float) -> float:
    """Distinct experts that `tokens` tokens meet, each choosing uniformly and for itself: E · (1 - (1 - k/E)^T)."""
    missed: float = (1 - experts.per_token / experts.count) ** tokens
    return experts.count * (1 - missed)
