"""The reference operators against independent ones: float64 written out, or torch's own where it has one."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.kernels import reference as ops

EXACT = settings(derandomize=True, deadline=None, max_examples=40)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attention_float64(q, k, v):
    """Softmax attention, one query and one head at a time."""
    new, heads, dim = q.shape
    total, kv_heads = k.shape[:2]
    out = torch.zeros(new, heads, dim, dtype=torch.float64)
    for t in range(new):
        sees = total - new + t + 1
        for h in range(heads):
            keys, values = (x[:sees, h * kv_heads // heads].double() for x in (k, v))
            weights = (keys @ q[t, h].double() / math.sqrt(dim)).softmax(0)
            out[t, h] = weights @ values
    return out


@EXACT
@given(
    new=st.integers(1, 9), past=st.integers(0, 12), kv_heads=st.integers(1, 3), group=st.integers(1, 4),
    dim=st.sampled_from([2, 8, 24]), seed=st.integers(0, 99),
)  # fmt: skip
def test_causal_attention(new, past, kv_heads, group, dim, seed):
    q = draw(new, kv_heads * group, dim, seed=seed)
    k, v = draw(new + past, kv_heads, dim, seed=seed + 1), draw(new + past, kv_heads, dim, seed=seed + 2)
    assert (ops.causal_attention(q, k, v) - attention_float64(q, k, v)).abs().max() < 1e-5


def test_a_later_token_changes_nothing_before_it():
    q, k, v = draw(6, 4, 8), draw(6, 2, 8, seed=1), draw(6, 2, 8, seed=2)
    before = ops.causal_attention(q, k, v)
    k[5], v[5] = 100.0, 100.0
    after = ops.causal_attention(q, k, v)
    assert torch.equal(before[:5], after[:5])
    assert not torch.allclose(before[5], after[5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rms_norm(dtype):
    x, weight = draw(7, 96).to(dtype), draw(96, seed=1).to(dtype)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    got = ops.rms_norm(x, weight, 1e-5)
    assert got.dtype == dtype
    assert ((got.double() - expected).abs() <= 2.5 * torch.finfo(dtype).eps * expected.abs() + 1e-12).all()
    assert torch.equal(ops.rms_norm(torch.zeros(1, 96, dtype=dtype), weight, 1e-5), torch.zeros(1, 96, dtype=dtype))


def test_rope_is_a_rotation_of_pairs():
    """Against complex multiplication: pair i is the number x[i] + j·x[i + D/2], turned by position · frequency."""
    x, angles = draw(5, 3, 16), torch.rand(5, 8, generator=torch.Generator().manual_seed(3)) * 100
    turned = torch.complex(x[..., :8].double(), x[..., 8:].double()) * torch.polar(
        torch.ones(5, 1, 8).double(), angles[:, None].double()
    )
    expected = torch.cat((turned.real, turned.imag), -1)
    assert (ops.apply_rope(x, angles.cos(), angles.sin()) - expected).abs().max() < 1e-5


def test_rope_makes_scores_depend_on_distance_alone():
    q, k = draw(1, 1, 32), draw(1, 1, 32, seed=1)
    frequencies = 10000.0 ** (-torch.arange(16) / 16)

    def score(query_at, key_at):
        turn = lambda x, at: ops.apply_rope(x, (at * frequencies).cos()[None], (at * frequencies).sin()[None])  # noqa: E731
        return (turn(q, query_at) * turn(k, key_at)).sum().item()

    assert score(7, 3) == pytest.approx(score(107, 103), abs=1e-4)
    assert score(7, 3) != pytest.approx(score(8, 3), abs=1e-2)


def test_silu_mul():
    x = draw(4, 10)
    expected = x[:, :5].double() / (1 + (-x[:, :5].double()).exp()) * x[:, 5:].double()
    assert (ops.silu_mul(x) - expected).abs().max() < 1e-6


@EXACT
@given(
    tokens=st.integers(1, 20), experts=st.integers(1, 8), chosen=st.integers(1, 8), normalize=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_moe_equals_one_token_at_a_time(tokens, experts, chosen, normalize, seed):
    chosen = min(chosen, experts)
    hidden, inner = 12, 10
    x, logits = draw(tokens, hidden, seed=seed), draw(tokens, experts, seed=seed + 1)
    gate_up, down = draw(experts, 2 * inner, hidden, seed=seed + 2), draw(experts, hidden, inner, seed=seed + 3)
    weights, ids = ops.route(logits, chosen, normalize)
    assert ids.shape == weights.shape == (tokens, chosen)
    assert all(len(set(row)) == chosen for row in ids.tolist())
    if normalize:
        assert torch.allclose(weights.sum(-1), torch.ones(tokens))
    else:
        assert (weights.sum(-1) <= 1 + 1e-6).all()
    expected = torch.zeros(tokens, hidden, dtype=torch.float64)
    for t in range(tokens):
        for weight, e in zip(weights[t].double(), ids[t], strict=True):
            gate, up = (gate_up[e].double() @ x[t].double()).chunk(2)
            expected[t] += weight * (down[e].double() @ (F.silu(gate) * up))
    got = ops.moe(x, weights, ids, gate_up, down)
    assert (got - expected).abs().max() < 1e-4 * max(1.0, expected.abs().max().item())
