"""The decoder's operators in plain torch: the truth that every faster backend is tested against.

Letters in shapes: T tokens, H hidden size, N query heads, G key/value heads, D head dimension, I intermediate size,
E experts, K experts per token, B sequences of a batch, P blocks of a KV cache of S slots each. Functions change
what they say they change and nothing else. Statistics (norms, softmax) are taken in float32 whatever the input's dtype,
and the result is returned in the input's dtype, as the models were trained. Nothing here is tuned.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from miniserve.kernels.expert_stack import ExpertStack
from miniserve.kernels.formats import E4M3, INT8
from miniserve.kernels.linear_weight import LinearWeight

LARGEST_CODE = {torch.float8_e4m3fn: E4M3.max, torch.int8: INT8.max}  # of keys and values in 8 bits
LEAST_SCALE = 1e-30  # of a head of zeros


def linear(x: Tensor, weight: LinearWeight) -> Tensor:
    """y = x Wᵀ + b.

    Args:
        x: [..., K].
        weight: W [N, K] and b [N], in any form; one of few bits is expanded here, each time.

    Returns:
        [..., N] in x's dtype.
    """
    bias = None if weight.bias is None else weight.bias.to(x.dtype)
    return F.linear(x, weight.dense().to(x.dtype), bias)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide each row by its root mean square, then scale: x / sqrt(mean(x²) + eps) · weight.

    Args:
        x: [..., H].
        weight: [H].
        eps: keeps the division finite for an all-zero row.

    Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", eq. 4.

    Example:
        >>> import torch
        >>> from miniserve.kernels import reference
        >>> reference.rms_norm(torch.tensor([[3.0, 4.0]]), torch.ones(2), eps=0.0)
        tensor([[0.8485, 1.1314]])
    """
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


def add_rms_norm(residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add x to the residual stream, in place, and return what it is now, normalised.

    Adding and normalising belong together: a backend reads and writes the stream once for both.

    Args:
        residual: [..., H]; changed.
        x: [..., H] in residual's dtype.
        weight: [H].
        eps: as in `rms_norm`.

    Returns:
        [..., H].
    """
    return rms_norm(residual.add_(x), weight, eps)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each head's pairs (x[i], x[i + D/2]) by its position's angles: the half-split pairing.

    Args:
        x: [T, N, D].
        cos, sin: [T, D/2], float32.

    Source: Su et al. 2021, "RoFormer", eq. 34, with the pairing of Llama's published weights.
    """
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of the newest tokens of one sequence over all of it; a token sees itself and its past.

    Args:
        q: [T, N, D], the last T positions of the sequence.
        k, v: [S, G, D] with S >= T; query head n reads key/value head n // (N / G).

    Returns:
        [T, N, D] in q's dtype. Scores are scaled by 1/sqrt(D) (Vaswani et al. 2017, eq. 1).
    """
    new, total = q.shape[0], k.shape[0]
    visible = None
    if new > 1:
        rows = torch.arange(total - new, total, device=q.device)
        visible = torch.arange(total, device=q.device)[None, :] <= rows[:, None]
    q, k, v = (part.transpose(0, 1).unsqueeze(0) for part in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=q.shape[1] != k.shape[1])
    return out.squeeze(0).transpose(0, 1)


def store_kv(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    """Write each token's key and value into its slot of the paged cache, in place.

    A cache of 8 bits has a scale for each head of each token, the largest magnitude over the format's largest code. It
    hangs on nothing but the token's own key or value, and lies in the token's block: whoever has the block has both.

    Args:
        k, v: [T, G, D].
        k_cache, v_cache: [P, S, G, D], of floats, or float8_e4m3fn or int8, then with scales.
        slots: [T] int64; slot s is block s // S, row s % S. A negative one is padding: nothing is written.
        k_scale, v_scale: [P, G, S] float32; written too.
    """
    real = slots >= 0
    slots = slots[real]
    for x, cache, scales in ((k[real], k_cache, k_scale), (v[real], v_cache, v_scale)):
        if scales is None:
            cache.flatten(0, 1)[slots] = x.to(cache.dtype)
            continue
        scale = x.float().abs().amax(-1).div(LARGEST_CODE[cache.dtype]).clamp(min=LEAST_SCALE)
        codes = x.float() / scale[..., None]
        codes = codes.round() if cache.dtype is torch.int8 else codes.clamp(-E4M3.max, E4M3.max)
        cache.flatten(0, 1)[slots] = codes.to(cache.dtype)
        scales[slots // cache.shape[1], :, slots % cache.shape[1]] = scale


def rope_store(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> Tensor:
    """Rotate queries and keys, put keys and values into the paged cache, and give the queries back.

    Args:
        qkv: [T, N + 2·G, D], the heads of queries, keys and values.
        cos, sin: [T, D/2], float32.
        k_cache, v_cache, slots, k_scale, v_scale: see `store_kv`.

    Returns:
        [T, N, D].
    """
    kv_heads = k_cache.shape[2]
    q, k, v = torch.split(qkv, [qkv.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1)
    store_kv(apply_rope(k, cos, sin), v, k_cache, v_cache, slots, k_scale, v_scale)
    return apply_rope(q, cos, sin)


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    query_start: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> Tensor:
    """`causal_attention` of every sequence of a batch, its past read through its block table.

    Args:
        q: [T, N, D], the sequences' new tokens one after the other; their keys and values are in the cache already.
        k_cache, v_cache: [P, S, G, D].
        query_start: [B + 1]; sequence b's queries are rows query_start[b] to query_start[b + 1].
        context_lens: [B], tokens of each sequence in the cache, the new ones included; 0 for a padded row.
        block_table: [B, W] with W >= ceil(context / S) entries used in each row; the others are not read.
        k_scale, v_scale: of a cache of 8 bits, see `store_kv`.

    Returns:
        [T, N, D]; zeros for rows that belong to no sequence or to one of length 0.
    """
    size, out = k_cache.shape[1], torch.zeros_like(q)
    starts, lengths = query_start.tolist(), context_lens.tolist()
    for row, length in enumerate(lengths):
        first, last = starts[row], starts[row + 1]
        if length == 0 or first == last:
            continue
        blocks = block_table[row, : -(-length // size)].long()
        k = _read(k_cache, k_scale, blocks, length).to(q.dtype)
        v = _read(v_cache, v_scale, blocks, length).to(q.dtype)
        out[first:last] = causal_attention(q[first:last], k, v)
    return out


def _read(cache: Tensor, scales: Tensor | None, blocks: Tensor, length: int) -> Tensor:
    """What the first `length` slots of some blocks stand for: [length, G, D]."""
    rows = cache[blocks].flatten(0, 1)[:length]
    if scales is None:
        return rows
    return rows.float() * scales[blocks].transpose(1, 2).flatten(0, 1)[:length, :, None]


def silu_mul(gate_up: Tensor) -> Tensor:
    """SiLU(gate) · up for a fused projection. [..., 2·I] -> [..., I]. Source: Shazeer 2020, "GLU Variants", eq. 6."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def argmax(logits: Tensor) -> Tensor:
    """The place of each row's first largest entry; of its first NaN, if it has one. [R, V] -> [R] int64."""
    return logits.argmax(-1)


def route(router_logits: Tensor, experts_per_token: int, normalize: bool) -> tuple[Tensor, Tensor]:
    """Choose each token's experts: softmax over all experts, then the K largest.

    Args:
        router_logits: [T, E].
        experts_per_token: K.
        normalize: rescale the K chosen weights to sum to one (Mixtral, Qwen3-MoE) or not (OLMoE).

    Returns:
        weights [T, K] float32 and expert ids [T, K] int64.
    """
    weights, expert_ids = router_logits.float().softmax(-1).topk(experts_per_token, dim=-1)
    if normalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, expert_ids


def moe(
    x: Tensor,
    weights: Tensor,
    expert_ids: Tensor,
    gate_up: Tensor | ExpertStack,
    down: Tensor | ExpertStack,
    *,
    linear: Callable[[Tensor, LinearWeight], Tensor] = linear,
    silu_mul: Callable[[Tensor], Tensor] = silu_mul,
) -> Tensor:
    """Send each token through its chosen experts and add up what they answer. Idle experts cost nothing.

    Args:
        x: [T, H].
        weights, expert_ids: [T, K] from `route`; an id outside [0, E) is padding, to which nobody answers.
        gate_up: [E, 2·I, H], floats, or a stack of any form.
        down: [E, H, I].
        linear, silu_mul: the backend's.

    Returns:
        [T, H] in x's dtype.
    """
    out, widening, narrowing = torch.zeros_like(x), ExpertStack.of(gate_up), ExpertStack.of(down)
    for expert in sorted(set(expert_ids.flatten().tolist()) & set(range(narrowing.num_experts))):
        tokens, choice = torch.where(expert_ids == expert)
        answer = linear(silu_mul(linear(x[tokens], widening[expert])), narrowing[expert])
        out.index_add_(0, tokens, answer * weights[tokens, choice, None].to(x.dtype))
    return out
