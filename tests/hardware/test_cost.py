"""Counts against ones made by hand, totals against the model's own, and splits that lose nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniserve.errors import InvalidRequestError
from miniserve.hardware.cost import Part, expected_experts
from miniserve.hardware.shape import Experts, Parallel, Precision, Shape
from miniserve.hardware.step import step_operators

LLAMA_8B = Shape(32, 4096, 32, 8, 128, 14336, 128256)
MIXTRAL = Shape(32, 4096, 32, 8, 128, 14336, 32000, experts=Experts(8, 2, 14336))
BF16 = Precision.of("bf16")

parts_of_a_step = st.lists(
    st.builds(Part, st.integers(0, 5000), st.integers(1, 600), st.booleans()), min_size=1, max_size=6
)


def by_name(shape, parts, precision=BF16, parallel=None):
    return {op.name: op for op in step_operators(shape, parts, precision, parallel)}


def total(operators, quantity):
    return sum(op.times * getattr(op, quantity) for op in operators)


def test_one_decode_of_llama_8b_by_hand():
    """Batch 1 at context 1000: each product once, 32 layers, two bytes a number."""
    ops = by_name(LLAMA_8B, [Part(999, 1)])
    assert ops["qkv"].flops == 2 * 4096 * (4096 + 2 * 1024)
    assert ops["qkv"].weight_bytes == 2 * 4096 * 6144
    assert ops["attention output"].flops == 2 * 4096 * 4096
    assert ops["gate and up"].flops == 2 * 4096 * 28672
    assert ops["down"].weight_bytes == 2 * 14336 * 4096
    assert ops["down"].activation_bytes == 2 * (14336 + 4096)
    attention = ops["decode attention"]
    assert attention.flops == 4 * 32 * 128 * 1000
    assert attention.kv_bytes == 2 * 2 * 8 * 128 * (1000 + 1)
    assert (attention.times, attention.context, attention.depth, attention.peak) == (32, 1001, 1000, "bf16")
    assert ops["unembedding"].flops == 2 * 4096 * 128256
    assert ops["embedding"].weight_bytes == 2 * 4096
    assert "prefill attention" not in ops
    assert "all-reduce" not in ops


def test_a_chunk_attends_to_what_came_before_and_to_itself():
    ops = by_name(LLAMA_8B, [Part(100, 3, sampled=False)])
    assert ops["prefill attention"].flops == 4 * 32 * 128 * (101 + 102 + 103)
    assert ops["prefill attention"].kv_bytes == 2 * 2 * 8 * 128 * (103 + 3)
    assert "unembedding" not in ops


def test_a_mixed_step_has_both_attentions_and_one_of_each_product():
    ops = by_name(LLAMA_8B, [Part(0, 512), Part(2000, 1), Part(10, 1)])
    assert ops["qkv"].flops == 2 * 514 * 4096 * 6144
    assert ops["unembedding"].flops == 2 * 3 * 4096 * 128256
    assert ops["decode attention"].context == (2002 + 12) / 2
    assert ops["decode attention"].depth == 2001
    assert ops["prefill attention"].depth == 512


def test_experts_by_hand():
    """Mixtral, 3 tokens: 6 arrivals; expected distinct experts 8 · (1 - 0.75³) = 4.625."""
    assert expected_experts(MIXTRAL.experts, 1) == 2
    assert expected_experts(MIXTRAL.experts, 3) == pytest.approx(4.625)
    ops = by_name(MIXTRAL, [Part(9, 1)] * 3)
    assert ops["experts"].flops == 6 * 3 * 2 * 4096 * 14336
    assert ops["experts"].weight_bytes == pytest.approx(3 * 4.625 * 4096 * 14336 * 2)
    assert ops["router"].weight_bytes == 4096 * 8 * 2
    assert "down" not in ops


def test_some_dense_layers():
    shape = Shape(10, 64, 4, 4, 16, 256, 100, experts=Experts(8, 2, 32), dense_layers=3)
    ops = by_name(shape, [Part(0, 4)])
    assert (ops["experts"].times, ops["down"].times, ops["qkv"].times) == (7, 3, 10)


def test_formats_of_few_bits():
    ops = by_name(LLAMA_8B, [Part(0, 1)], Precision.of("nvfp4", kv="fp8"))
    assert ops["qkv"].weight_bytes == 0.5625 * 4096 * 6144
    assert ops["qkv"].peak == "fp4"
    assert ops["decode attention"].kv_bytes == 2 * 8 * 128 * 2
    assert (ops["decode attention"].format, ops["decode attention"].peak) == ("fp8", "bf16")
    assert (ops["unembedding"].weight_bytes, ops["unembedding"].peak) == (2 * 4096 * 128256, "bf16")


def test_expert_parallelism_by_hand():
    """4 ranks of 5 tokens: a rank holds 2 experts, which 20 tokens meet, and does as many rows as its tokens send out."""
    ops = by_name(MIXTRAL, [Part(7, 1)] * 5, parallel=Parallel(expert=4))
    assert ops["experts"].depth == 2
    assert ops["experts"].weight_bytes == pytest.approx(3 * 2 * (1 - 0.75**20) * 4096 * 14336 * 2)
    assert ops["experts"].flops == 6 * 10 * 4096 * 14336
    for name in ("dispatch", "combine"):
        assert ops[name].link_bytes == 5 * 2 * 4096 * 2 * 3 / 4
        assert ops[name].times == 32


def test_an_empty_step_costs_nothing():
    assert step_operators(LLAMA_8B, [], BF16) == []


@given(parts_of_a_step, st.sampled_from([2, 4, 8]), st.sampled_from([LLAMA_8B, MIXTRAL]))
def test_tensor_parallelism_shares_out_the_whole(parts, tensor, shape):
    """n devices do the FLOPs and keep the weights and the KV of one, and nothing twice but the router."""
    alone = [op for op in step_operators(shape, parts, BF16) if op.name != "router"]
    split = [op for op in step_operators(shape, parts, BF16, Parallel(tensor)) if op.name != "router"]
    assert tensor * total(split, "flops") == pytest.approx(total(alone, "flops"))
    assert tensor * total(split, "kv_bytes") == pytest.approx(total(alone, "kv_bytes"))
    products = [[op for op in ops if op.kind in {"gemm", "moe"}] for ops in (split, alone)]
    assert tensor * total(products[0], "weight_bytes") == pytest.approx(total(products[1], "weight_bytes"))
    reduce = next(op for op in split if op.kind == "all_reduce")
    tokens = sum(part.num_tokens for part in parts)
    assert reduce.times * reduce.link_bytes == pytest.approx(2 * 32 * 2 * (tensor - 1) / tensor * tokens * 4096 * 2)


@given(parts_of_a_step, st.integers(0, 100), st.sampled_from([LLAMA_8B, MIXTRAL]))
def test_more_work_costs_more(parts, more, shape):
    """Another request, a longer context, more new tokens: no operator gets cheaper and the step gets dearer."""
    base = step_operators(shape, parts, BF16)
    start, new, sampled = parts[0]
    for larger in (
        [*parts, Part(more, 1)],
        [Part(start + more + 1, new, sampled), *parts[1:]],
        [Part(start, new + (more + 1 if new > 1 else 0), sampled), *parts[1:], Part(0, 2)],
    ):
        ops = step_operators(shape, larger, BF16)
        for quantity in ("flops", "weight_bytes", "kv_bytes", "activation_bytes"):
            assert total(ops, quantity) >= total(base, quantity)
        assert total(ops, "flops") > total(base, "flops")
        assert total(ops, "kv_bytes") > total(base, "kv_bytes")


@given(st.integers(2, 400), st.integers(1, 399))
def test_chunked_prefill_does_the_same_arithmetic(length, first):
    """In two steps as in one: FLOPs are conserved, and KV that was written is read again."""
    first = min(first, length - 1)
    whole = step_operators(LLAMA_8B, [Part(0, length)], BF16)
    chunks = step_operators(LLAMA_8B, [Part(0, first, sampled=False)], BF16)
    chunks += step_operators(LLAMA_8B, [Part(first, length - first)], BF16)
    assert total(chunks, "flops") == pytest.approx(total(whole, "flops"))
    assert total(chunks, "kv_bytes") > total(whole, "kv_bytes")


def test_parameters_are_the_published_ones():
    assert LLAMA_8B.parameters == pytest.approx(8.03e9, rel=2e-3)
    assert MIXTRAL.parameters == pytest.approx(46.7e9, rel=2e-3)
    assert LLAMA_8B.kv_elements * 2 == 131072


@pytest.mark.parametrize(
    ("shape", "parallel", "message"),
    [
        (LLAMA_8B, Parallel(3), "heads"),
        (LLAMA_8B, Parallel(expert=2), "needs a model with experts"),
        (MIXTRAL, Parallel(expert=3), "experts"),
        (MIXTRAL, Parallel(0), "1 or more"),
        (Shape(1, 12, 12, 6, 2, 8, 8), Parallel(4), "kv_heads"),
    ],
)
def test_what_cannot_be_split_is_refused(shape, parallel, message):
    with pytest.raises(InvalidRequestError, match=message):
        step_operators(shape, [Part(0, 1)], BF16, parallel)


def test_an_unknown_format_is_refused():
    with pytest.raises(InvalidRequestError, match="no number format 'fp7'; there is fp32"):
        Precision.of("fp7")
