"""Latent attention's counts by hand, for DeepSeek-V3: 61 layers, 128 heads, 512 + 64 numbers kept of a token."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniserve.errors import InvalidRequestError
from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.cost import Part
from miniserve.hardware.efficiency import efficiency_of
from miniserve.hardware.roofline import Roofline
from miniserve.hardware.shape import Experts, Latent, Parallel, Precision, Shape
from miniserve.hardware.step import step_operators

LATENT = Latent(query_rank=1536, kv_rank=512, rotary=64, plain=128, value=128)
DEEPSEEK = Shape(61, 7168, 128, 128, 192, 18432, 129280, False, Experts(256, 8, 2048, 2048), 3, LATENT)
BF16, FP8 = Precision.of("bf16"), Precision.of("fp8")


def by_name(parts, precision=BF16, parallel=None):
    return {op.name: op for op in step_operators(DEEPSEEK, parts, precision, parallel)}


def flops(operators):
    return sum(op.times * op.flops for op in operators)


def test_the_published_sizes():
    """DeepSeek-V3, arXiv 2412.19437: 671 billion parameters, 37 billion of them for a token."""
    assert DEEPSEEK.parameters == pytest.approx(671e9, rel=1e-3)
    assert DEEPSEEK.active_parameters + DEEPSEEK.embedding_parameters == pytest.approx(37e9, rel=0.02)
    assert DEEPSEEK.kv_elements * 2 == 70_272


def test_a_decode_by_hand():
    ops = by_name([Part(999, 1)])
    assert ops["latents"].flops == 2 * 7168 * (1536 + 576)
    assert ops["queries"].flops == 2 * 1536 * 128 * 192
    assert ops["queries to latents"].flops == 2 * 128 * 128 * 512 == ops["latents to values"].flops
    assert ops["queries to latents"].weight_bytes == 2 * 128 * 128 * 512
    assert ops["queries to latents"].activation_bytes == 2 * 128 * (128 + 512)
    assert ops["attention output"].weight_bytes == 2 * 128 * 128 * 7168
    attention = ops["decode attention"]
    assert attention.kind == "latent_attention"
    assert attention.flops == 2 * 128 * (576 + 512) * 1000
    assert attention.kv_bytes == 2 * 576 * (1000 + 1)
    assert (attention.times, attention.context, attention.depth) == (61, 1001, 1000)
    assert "keys and values" not in ops


def test_a_chunk_of_a_prompt_by_hand():
    """Keys and values are made for the 100 tokens before it, too."""
    ops = by_name([Part(100, 3, sampled=0)])
    assert ops["keys and values"].flops == 2 * 103 * 512 * 128 * 256
    attention = ops["prefill attention"]
    assert attention.flops == 2 * 128 * (192 + 128) * (101 + 102 + 103)
    assert attention.kv_bytes == 2 * 128 * 320 * 103 + 2 * 576 * 3
    assert "latents to values" not in ops


def test_guesses_are_verified_as_a_decode():
    ops = by_name([Part(999, 3, sampled=3)])
    assert ops["decode attention"].flops == 2 * 128 * 1088 * (1000 + 1001 + 1002)
    assert ops["decode attention"].kv_bytes == 2 * 576 * (1002 + 3)
    assert ops["unembedding"].flops == 3 * 2 * 7168 * 129280


def test_the_rest_of_a_layer():
    ops = by_name([Part(9, 1)] * 4, FP8, Parallel(1, 8))
    assert (ops["gate and up"].times, ops["experts"].times, ops["shared down"].times) == (3, 58, 58)
    assert ops["shared gate and up"].weight_bytes == 7168 * 2 * 2048
    assert ops["dispatch"].link_bytes == 4 * 8 * 7168 * 1 * 7 / 8
    assert ops["combine"].link_bytes == 4 * 8 * 7168 * 2 * 7 / 8
    pairs = by_name([Part(9, 1)] * 4, FP8, Parallel(2, 8))
    assert (pairs["dispatch"].ranks, pairs["dispatch"].stride, pairs["all-reduce"].stride) == (8, 2, 1)
    assert pairs["shared down"].weight_bytes == 7168 * 1024


@given(st.integers(1, 64))
def test_a_token_passes_through_the_active_parameters(batch):
    """Two FLOPs each; the first token of a context has next to no attention."""
    linear = [op for op in step_operators(DEEPSEEK, [Part(0, 1)] * batch, BF16) if "attention" not in op.kind]
    assert flops(linear) == pytest.approx(2 * batch * DEEPSEEK.active_parameters)


@given(st.integers(2, 300), st.integers(0, 3000), st.sampled_from([2, 8, 64]))
def test_tensor_parallelism_shares_out_heads_and_not_what_is_kept(new, start, tensor):
    for part in (Part(start, 1), Part(start, new, 0)):
        alone, split = (by_name([part], parallel=Parallel(tensor)) for tensor in (1, tensor))
        for name in {"queries", "decode attention", "prefill attention", "keys and values", "attention output"} & {
            *alone
        }:
            assert split[name].flops * tensor == pytest.approx(alone[name].flops)
        assert split["latents"] == alone["latents"]
    assert by_name([Part(start, 1)], parallel=Parallel(tensor))["decode attention"].kv_bytes == 2 * 576 * (start + 2)


def test_its_kernel_reaches_what_its_authors_state():
    """FlashMLA: 3,000 GB/s where memory is the limit (few heads), 660 TFLOP/s where arithmetic is."""
    timer = Roofline(load_catalog().accelerator("h100"), efficiency_of("h100"))
    (many,) = (op for op in step_operators(DEEPSEEK, [Part(2**15, 1)] * 128, BF16) if op.kind == "latent_attention")
    assert many.times * many.flops / timer.seconds(many) == pytest.approx(660e12, rel=0.01)
    few = many._replace(flops=many.flops / 8)
    assert few.times * few.bytes / timer.seconds(few) == pytest.approx(3000e9, rel=0.01)


def test_sizes_that_contradict_one_another_are_refused():
    with pytest.raises(InvalidRequestError, match="has head_dim 192 and as many kv_heads as heads, not 128 and 128"):
        Shape(61, 7168, 128, 128, 128, 18432, 129280, latent=LATENT)
    with pytest.raises(InvalidRequestError, match="layers is 0"):
        Shape(0, 8, 1, 1, 8, 8, 8)
    with pytest.raises(InvalidRequestError, match="11 of 10 layers"):
        Shape(10, 8, 1, 1, 8, 8, 8, dense_layers=11)
    with pytest.raises(InvalidRequestError, match="cannot go to 9 of 8 experts"):
        Experts(8, 9, 16)
