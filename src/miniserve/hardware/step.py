"""Which operators a decoder's step has, as one device does them, and how often.

Prefill, decode and a mixture of both are one thing: a part with one new token is a decode, and so is one whose guesses
are verified. With expert parallelism the parts are one rank's, and every rank has as many.
"""

from collections.abc import Iterable
from functools import partial

from miniserve.hardware.cost import Operator, Part, Parts, attention, collective, expected_experts, gemm, moe
from miniserve.hardware.formats import number_format
from miniserve.hardware.latent import latent_block, latent_decode
from miniserve.hardware.shape import Experts, Parallel, Precision, Shape


def step_operators(
    shape: Shape, parts: Iterable[Part], precision: Precision, parallel: Parallel | None = None
) -> list[Operator]:
    """Every operator of one step, as one device of `parallel` does it.

    Args:
        shape: the model's sizes.
        parts: what each request computes; of one rank's requests, where experts are parallel.
        precision: the formats that weights, KV and activations are in.
        parallel: how the model is split; None: not at all.

    Example:
        >>> from miniserve.hardware.cost import Part
        >>> from miniserve.hardware.shape import Precision
        >>> from miniserve.hardware.step import step_operators
        >>> from miniserve.simulate.models import shape_by_name
        >>> prompt = [Part(start=0, num_tokens=512)]
        >>> for op in step_operators(shape_by_name("qwen3-8b"), prompt, Precision.of("bf16"))[:4]:
        ...     print(f"{op.times:.0f} x {op.name}: {op.flops:.1e} FLOPs, {op.bytes:.1e} bytes")
        1 x embedding: 0.0e+00 FLOPs, 8.4e+06 bytes
        36 x qkv: 2.6e+10 FLOPs, 6.1e+07 bytes
        36 x prefill attention: 2.2e+09 FLOPs, 1.3e+07 bytes
        36 x attention output: 1.7e+10 FLOPs, 4.2e+07 bytes
    """
    parts = list(parts)
    decodes = Parts.of(part for part in parts if part.is_decode)
    prefills = Parts.of(part for part in parts if not part.is_decode)
    return operators_of(shape, prefills, decodes, sum(part.sampled for part in parts), precision, parallel)


def operators_of(
    shape: Shape,
    prefills: Parts,
    decodes: Parts,
    samples: float,
    precision: Precision,
    parallel: Parallel | None = None,
) -> list[Operator]:
    """As `step_operators`, for a caller that keeps totals: behind `samples` of the tokens one is chosen."""
    parallel = parallel or Parallel()
    parallel.check(shape)
    tokens = decodes.tokens + prefills.tokens
    if not tokens:
        return []
    tensor, hidden, layers = parallel.tensor, shape.hidden, shape.layers
    operators = [
        embedding(shape, precision, tokens),
        *attention_block(shape, precision, prefills, decodes, tensor),
        *dense_block(shape, precision, tokens, tensor),
    ]
    if shape.experts and shape.sparse_layers:
        operators += _mixture(shape, shape.experts, precision, tokens, parallel)
    operators.append(elementwise(shape, precision, tokens, tensor))
    if samples:
        operators.append(unembedding(shape, precision, samples, tensor))
    if tensor > 1:
        message = tokens * hidden * precision.activation_bytes
        operators.append(collective("all_reduce", message, tensor, times=2 * layers))
        if samples:
            operators.append(collective("all_gather", samples * shape.vocab * precision.activation_bytes, tensor))
    return operators


def decode_attention(shape: Shape, precision: Precision, parts: Parts, tensor: int) -> Operator:
    """The one operator of a decode step that depends on the contexts, in all layers."""
    if shape.latent:
        return latent_decode(shape, shape.latent, precision, parts, tensor=tensor, times=shape.layers)
    return attention("decode_attention", shape, precision, parts, tensor=tensor, times=shape.layers)


def embedding(shape: Shape, precision: Precision, tokens: float) -> Operator:
    """Rows of the table."""
    return Operator(
        "embedding", "elementwise", "any", "none", 1,
        weight_bytes=0 if shape.tied else tokens * shape.hidden * precision.embedding_bytes,
        activation_bytes=tokens * shape.hidden * precision.activation_bytes,
    )  # fmt: skip


def attention_block(shape: Shape, precision: Precision, prefills: Parts, decodes: Parts, tensor: int) -> list[Operator]:
    """Of all layers, one device's part."""
    if shape.latent:
        return latent_block(shape, shape.latent, precision, prefills, decodes, tensor)
    heads, width = shape.heads / tensor, shape.head_dim
    kv_heads = max(1, shape.kv_heads / tensor)
    product = partial(
        gemm, format=precision.linear, m=prefills.tokens + decodes.tokens, times=shape.layers,
        weight_bytes=precision.weight_bytes, activation_bytes=precision.activation_bytes,
    )  # fmt: skip
    if shape.query_rank:
        operators = [
            product("query and kv", n=shape.query_rank + 2 * kv_heads * width, k=shape.hidden),
            product("queries", n=heads * width, k=shape.query_rank),
        ]
    else:
        operators = [product("qkv", n=(heads + 2 * kv_heads) * width, k=shape.hidden)]
    if prefills.tokens:
        operators.append(attention("prefill_attention", shape, precision, prefills, tensor=tensor, times=shape.layers))
    if decodes.tokens:
        operators.append(decode_attention(shape, precision, decodes, tensor))
    return [*operators, product("attention output", n=shape.hidden, k=heads * width)]


def dense_block(shape: Shape, precision: Precision, tokens: float, devices: int) -> list[Operator]:
    """Of all dense feed-forward parts, what one of `devices` does that share each."""
    if not (layers := shape.layers - shape.sparse_layers):
        return []
    product = partial(
        gemm, format=precision.linear, m=tokens, times=layers,
        weight_bytes=precision.weight_bytes, activation_bytes=precision.activation_bytes,
    )  # fmt: skip
    width = shape.intermediate / devices
    return [product("gate and up", n=2 * width, k=shape.hidden), product("down", n=shape.hidden, k=width)]


def router(shape: Shape, experts: Experts, precision: Precision, tokens: float) -> Operator:
    """Of all sparse layers, a score for each expert."""
    return gemm(
        "router", precision.attention, tokens, experts.count, shape.hidden, times=shape.sparse_layers,
        weight_bytes=precision.activation_bytes, activation_bytes=precision.activation_bytes,
    )  # fmt: skip


def shared_expert(
    shape: Shape, experts: Experts, precision: Precision, tokens: float, tensor: int = 1
) -> list[Operator]:
    """Of all sparse layers, the part that every token goes through."""
    if not experts.shared:
        return []
    product = partial(
        gemm, format=precision.linear, m=tokens, times=shape.sparse_layers,
        weight_bytes=precision.weight_bytes, activation_bytes=precision.activation_bytes,
    )  # fmt: skip
    width = experts.shared / tensor
    return [
        product("shared gate and up", n=2 * width, k=shape.hidden),
        product("shared down", n=shape.hidden, k=width),
    ]


def _mixture(shape: Shape, experts: Experts, precision: Precision, tokens: float, parallel: Parallel) -> list[Operator]:
    ranks, layers, hidden = parallel.expert, shape.sparse_layers, shape.hidden
    held = parallel.held(experts)
    # Of a rank's experts, those that all ranks' tokens meet; copies share the tokens of one expert.
    met = held * expected_experts(experts, tokens * ranks) / experts.count
    operators = [
        router(shape, experts, precision, tokens),
        moe(precision, hidden, experts, tokens * experts.per_token, held=held, met=met, tensor=parallel.tensor,
            times=layers),
        *shared_expert(shape, experts, precision, tokens, parallel.tensor),
    ]  # fmt: skip
    if ranks > 1:
        # A token's row goes to each of its experts in the format that they compute in, and comes back as an activation
        # (DeepSeek-V3, arXiv 2412.19437, section 3.3.3: dispatch in FP8, combine in BF16).
        rows = tokens * experts.per_token * hidden
        there = min(precision.activation_bytes, number_format(precision.linear).bytes)
        for name, size in (("dispatch", there), ("combine", precision.activation_bytes)):
            message = rows * size
            operators.append(collective("all_to_all", message, ranks, name=name, stride=parallel.tensor, times=layers))
    return operators


def elementwise(shape: Shape, precision: Precision, tokens: float, tensor: int, *, with_gate: bool = True) -> Operator:
    """A layer's two norms with their residuals, RoPE and the gate, each reading its inputs and writing its result."""
    heads, kv_heads, width = shape.heads / tensor, max(1, shape.kv_heads / tensor), shape.head_dim
    if shape.latent:
        kv_heads, width = 1, shape.latent.rotary
    gate = shape.intermediate * (shape.layers - shape.sparse_layers) / shape.layers  # an expert's gate is its own
    row = 2 * 4 * shape.hidden + 2 * (heads + kv_heads) * width + (3 * gate / tensor if with_gate else 0)
    activations = tokens * row * precision.activation_bytes
    return Operator("elementwise", "elementwise", "any", "none", shape.layers, activation_bytes=activations)


def unembedding(shape: Shape, precision: Precision, samples: float, tensor: int) -> Operator:
    """Logits of so many tokens."""
    return gemm(
        "unembedding", precision.unembedding, samples, shape.vocab / tensor, shape.hidden,
        weight_bytes=precision.unembedding_bytes, activation_bytes=precision.activation_bytes,
    )  # fmt: skip
