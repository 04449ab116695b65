"""All layers in one call: the bits of the operators one by one, and the reference within rounding."""

import itertools

import pytest
import torch

from miniserve.kernels import reference
from miniserve.kernels.cpu import ops
from miniserve.kernels.cpu.dense import Gated, Layer, Layers, Paged
from miniserve.kernels.cpu.linear import linear
from miniserve.kernels.groups import Groups
from miniserve.kernels.linear_weight import LinearWeight

pytestmark = pytest.mark.usefixtures("compiled")
HIDDEN, INNER, HEADS, KV_HEADS, DIM, LAYERS, BLOCK_SIZE, EPS = 64, 128, 6, 2, 32, 3, 4, 1e-5


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_layers(bits, normed):
    def product(rows, columns, seed, bias=None):
        weight = draw(rows, columns, seed=seed) / columns**0.5
        return LinearWeight.packed(Groups.rounding(weight, bits), bias) if bits else LinearWeight(weight, None, bias)

    width = HEADS * DIM
    return [
        Layer(
            1 + 0.1 * draw(HIDDEN, seed=s), product(width + 2 * KV_HEADS * DIM, HIDDEN, s + 1, draw(width + 2 * KV_HEADS * DIM)),
            product(HIDDEN, width, s + 2), 1 + 0.1 * draw(HIDDEN, seed=s + 3), Gated(product(2 * INNER, HIDDEN, s + 4), product(HIDDEN, INNER, s + 5)),
            q_norm=draw(DIM, seed=s + 6) if normed else None, k_norm=draw(DIM, seed=s + 7) if normed else None,
        )
        for s in range(0, 10 * LAYERS, 10)
    ]  # fmt: skip


def make_step(lengths, new):
    """x, cos, sin and where the tokens lie, for sequences that have `lengths` after the step."""
    blocks = [-(-length // BLOCK_SIZE) for length in lengths]
    table = torch.zeros(len(lengths), max(blocks), dtype=torch.int32)
    for row, (first, count) in enumerate(zip(itertools.accumulate(blocks, initial=0), blocks, strict=False)):
        table[row, :count] = torch.arange(first, first + count)
    positions = torch.cat([torch.arange(length - n, length) for length, n in zip(lengths, new, strict=True)])
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(new))
    slots = table[owner, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE
    starts = torch.tensor([0, *itertools.accumulate(new)], dtype=torch.int32)
    x = torch.stack([draw(HIDDEN, seed=int(position)) for position in positions])
    angles = positions[:, None] * 10000.0 ** -(torch.arange(DIM // 2) / (DIM // 2))
    return x, angles.cos(), angles.sin(), Paged(slots, starts, torch.tensor(lengths, dtype=torch.int32), table)


def make_caches(dtype=torch.float32):
    return [
        tuple(torch.full((40, BLOCK_SIZE, KV_HEADS, DIM), torch.nan, dtype=dtype) for _ in range(2))
        for _ in range(LAYERS)
    ]


def together(layers):
    return Layers(layers, num_heads=HEADS, kv_heads=KV_HEADS, head_dim=DIM, eps=EPS)


def one_by_one(layers, x, cos, sin, caches, paged):
    """The same through the operators of `ops` and `linear`."""
    delta = None
    for layer, cache in zip(layers, caches, strict=True):
        norm = layer.attention_norm
        normed = ops.rms_norm(x, norm, EPS) if delta is None else ops.add_rms_norm(x, delta, norm, EPS)
        qkv = linear(normed, layer.qkv).view(len(x), -1, DIM)
        if layer.q_norm is not None:
            q, k, v = torch.split(qkv, [HEADS, KV_HEADS, KV_HEADS], dim=1)
            qkv = torch.cat((ops.rms_norm(q, layer.q_norm, EPS), ops.rms_norm(k, layer.k_norm, EPS), v), dim=1)
        q = ops.rope_store(qkv, cos, sin, *cache, paged.slots)
        seen = ops.paged_attention(q, *cache, paged.query_start, paged.context_lens, paged.block_table)
        normed = ops.add_rms_norm(x, linear(seen.flatten(1), layer.out), layer.mlp_norm, EPS)
        delta = linear(ops.silu_mul(linear(normed, layer.feed_forward.gate_up)), layer.feed_forward.down)
    return x + delta


def in_torch(layers, x, cos, sin, caches, paged):
    """The same through the reference."""
    for layer, cache in zip(layers, caches, strict=True):
        qkv = reference.rms_norm(x, layer.attention_norm, EPS) @ layer.qkv.dense().T + layer.qkv.bias
        q, k, v = torch.split(qkv.view(len(x), -1, DIM), [HEADS, KV_HEADS, KV_HEADS], dim=1)
        if layer.q_norm is not None:
            q, k = reference.rms_norm(q, layer.q_norm, EPS), reference.rms_norm(k, layer.k_norm, EPS)
        reference.store_kv(reference.apply_rope(k, cos, sin), v, *cache, paged.slots)
        seen = reference.paged_attention(reference.apply_rope(q, cos, sin), *cache, *paged[1:])
        x = x + seen.flatten(1) @ layer.out.dense().T
        inner = reference.silu_mul(reference.rms_norm(x, layer.mlp_norm, EPS) @ layer.feed_forward.gate_up.dense().T)
        x = x + inner @ layer.feed_forward.down.dense().T
    return x


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("cache", [torch.float32, torch.bfloat16])
def test_equals_the_operators_and_the_reference(bits, normed, cache):
    layers, caches, others, truths = (
        make_layers(bits, normed),
        make_caches(cache),
        make_caches(cache),
        make_caches(cache),
    )
    run = together(layers)
    # Two prompts, then one more token for the first and a chunk for the second.
    for lengths, new in [([5, 9], [5, 9]), ([6, 13], [1, 4])]:
        x, cos, sin, paged = make_step(lengths, new)
        expected = one_by_one(layers, x.clone(), cos, sin, others, paged)
        truth = in_torch(layers, x.clone(), cos, sin, truths, paged)
        got = run(x, cos, sin, caches, paged)
        assert got is x
        assert torch.equal(got, expected)
        limit = 1e-4 if bits is None and cache is torch.float32 else 3e-2
        assert (got - truth).abs().max() < limit * truth.abs().max()
        for mine, theirs in zip(caches, others, strict=True):
            assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("bits", [None, 4])
def test_the_same_bits_alone_batched_and_in_chunks(bits):
    run = together(make_layers(bits, False))
    x, cos, sin, paged = make_step([11, 7, 20], [11, 7, 20])
    batched = run(x, cos, sin, make_caches(), paged)
    x, cos, sin, paged = make_step([20], [20])
    assert torch.equal(run(x, cos, sin, make_caches(), paged), batched[18:])
    caches, chunks = make_caches(), []
    for end, count in [(8, 8), (9, 1), (20, 11)]:
        x, cos, sin, paged = make_step([end], [count])
        # The block table of a longer sequence begins like that of a shorter one.
        chunks.append(run(x, cos, sin, caches, paged))
    assert torch.equal(torch.cat(chunks), batched[18:])


def test_refusals():
    layers = make_layers(None, False)
    x, cos, sin, paged = make_step([5], [5])
    with pytest.raises(ValueError, match="do not fit together"):
        together(layers)(x, cos, sin, make_caches(), paged._replace(slots=paged.slots + 1000))
    with pytest.raises(ValueError, match="do not fit together"):
        together(layers)(x, cos, sin, make_caches(), paged._replace(block_table=paged.block_table + 1000))
    with pytest.raises(ValueError, match="do not fit together"):
        Layers(layers, num_heads=HEADS, kv_heads=KV_HEADS, head_dim=2 * DIM, eps=EPS)


def test_small_layers_stay_in_one_call(monkeypatch):
    """Also with many tokens on a processor with bfloat16 products: Python between operators costs more than they save."""
    monkeypatch.setattr("miniserve.kernels.cpu.linear.has_bf16_products", lambda: True)
    layers = [
        Layer(
            *(layer.attention_norm, LinearWeight(layer.qkv.data.bfloat16()), LinearWeight(layer.out.data.bfloat16())),
            *(layer.mlp_norm, layer.feed_forward),
        )
        for layer in make_layers(None, normed=False)
    ]
    made = Layers(layers, num_heads=HEADS, kv_heads=KV_HEADS, head_dim=DIM, eps=EPS)
    weights = sum(weight.data.numel() for weight in layers[0].products[:2])
    assert [made.are_faster(tokens) for tokens in (1, 100, round(30e6 / weights))] == [True, True, False]
