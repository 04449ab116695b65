"""Multi-head latent attention, in the two ways that it is computed (DeepSeek-V2, arXiv 2405.04434, section 2.1).

A prompt's keys and values are made from the kept vectors of all its tokens, and then attended to like any others. A
decode instead takes its queries to where the kept vectors are, and the result back (the matrices are *absorbed*): all
heads read the same narrow rows, and do more arithmetic on each. Tensor parallelism shares out the heads; what is kept
of a token, and the matrices that make it, every device has.
"""

from functools import partial

from miniserve.hardware.cost import Operator, Parts, gemm
from miniserve.hardware.formats import number_format
from miniserve.hardware.shape import Latent, Precision, Shape


def latent_block(
    shape: Shape, latent: Latent, precision: Precision, prefills: Parts, decodes: Parts, tensor: int
) -> list[Operator]:
    """All operators of the attention part, on one of `tensor` devices."""
    tokens, heads, layers = prefills.tokens + decodes.tokens, shape.heads / tensor, shape.layers
    product = partial(
        gemm, format=precision.linear, times=layers,
        weight_bytes=precision.weight_bytes, activation_bytes=precision.activation_bytes,
    )  # fmt: skip
    operators = [
        product("latents", m=tokens, n=latent.query_rank + latent.kept, k=shape.hidden),
        product("queries", m=tokens, n=heads * shape.head_dim, k=latent.query_rank or shape.hidden),
    ]
    if prefills.tokens:
        columns = heads * (latent.plain + latent.value)
        operators += [
            product("keys and values", m=prefills.contexts, n=columns, k=latent.kv_rank),
            _prefill(shape, latent, precision, prefills, heads),
        ]
    if decodes.tokens:
        operators += [
            _each_head(product("queries to latents", m=decodes.tokens, n=heads * latent.kv_rank, k=latent.plain),
                       decodes.tokens * heads * (latent.plain + latent.kv_rank) * precision.activation_bytes),
            latent_decode(shape, latent, precision, decodes, tensor=tensor, times=layers),
            _each_head(product("latents to values", m=decodes.tokens, n=heads * latent.value, k=latent.kv_rank),
                       decodes.tokens * heads * (latent.kv_rank + latent.value) * precision.activation_bytes),
        ]  # fmt: skip
    return [*operators, product("attention output", m=tokens, n=shape.hidden, k=heads * latent.value)]


def latent_decode(
    shape: Shape, latent: Latent, precision: Precision, parts: Parts, *, tensor: int = 1, times: float = 1
) -> Operator:
    """Every head's query against the kept vectors, each read once; the values are their first `kv_rank` columns."""
    heads, columns = shape.heads / tensor, latent.kept + latent.kv_rank
    return Operator(
        "decode attention",
        "latent_attention",
        precision.kv,
        number_format(precision.attention).peak,
        times,
        flops=2 * heads * columns * parts.pairs,
        kv_bytes=latent.kept * precision.kv_bytes * (parts.contexts + parts.tokens),
        activation_bytes=heads * columns * precision.activation_bytes * parts.tokens,
        depth=parts.longest,
        head_dim=columns / 2,
        context=(parts.contexts + parts.tokens) / parts.requests,
    )


def _prefill(shape: Shape, latent: Latent, precision: Precision, parts: Parts, heads: float) -> Operator:
    """Heads with keys and values of their own, which were made for this step; the kept vectors are written."""
    columns = shape.head_dim + latent.value
    made = heads * columns * precision.activation_bytes
    return Operator(
        "prefill attention",
        "prefill_attention",
        precision.attention,
        number_format(precision.attention).peak,
        shape.layers,
        flops=2 * heads * columns * parts.pairs,
        kv_bytes=made * parts.contexts + latent.kept * precision.kv_bytes * parts.tokens,
        activation_bytes=made * parts.tokens,
        depth=parts.longest,
        head_dim=columns / 2,
        context=(parts.contexts + parts.tokens) / parts.requests,
    )


def _each_head(product: Operator, activation_bytes: float) -> Operator:
    """A product in which each head has rows of its own, so that more goes in or out."""
    return product._replace(activation_bytes=activation_bytes)
