"""Attention and feed-forward parts apart: together they are the model, and what crosses is counted once."""

import pytest

from miniserve.errors import InvalidRequestError
from miniserve.hardware.afd import Sides, attention_side, both_ends, crossings, feed_forward_side
from miniserve.hardware.cost import Part, Parts
from miniserve.hardware.shape import Parallel, Precision
from miniserve.hardware.step import step_operators
from miniserve.simulate.models import shape_by_name

BF16 = Precision.of()
PARTS = [Part(1000, 1), Part(20, 1), Part(0, 64)]


def sides_of(shape, sides, parts=PARTS, tensor=1):
    """Operators of both sides, for `sides.attention` ranks that all have these parts."""
    decodes = Parts.of(part for part in parts if part.is_decode)
    prefills = Parts.of(part for part in parts if not part.is_decode)
    tokens = decodes.tokens + prefills.tokens
    here = attention_side(shape, prefills, decodes, BF16, tensor)
    here += both_ends(shape, tokens, sum(part.sampled for part in parts), BF16, tensor)
    return here, feed_forward_side(shape, tokens * sides.attention, BF16, sides)


def total(operators, name):
    return sum(op.times * getattr(op, name) for op in operators)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-30b-a3b", "deepseek-v3"])
@pytest.mark.parametrize("quantity", ["flops", "weight_bytes", "kv_bytes"])
def test_one_device_each_does_what_one_did_alone(name, quantity):
    shape = shape_by_name(name)
    here, there = sides_of(shape, Sides(1, 1))
    whole = step_operators(shape, PARTS, BF16, Parallel())
    assert total(here, quantity) + total(there, quantity) == pytest.approx(total(whole, quantity))


def test_activations_too_but_for_nothing():
    shape = shape_by_name("llama-3.1-8b")
    here, there = sides_of(shape, Sides(1, 1))
    whole = step_operators(shape, PARTS, BF16, Parallel())
    name = "activation_bytes"
    assert total(here, name) + total(there, name) == pytest.approx(total(whole, name))


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-30b-a3b"])
def test_the_other_sides_devices_share_its_work(name):
    shape = shape_by_name(name)
    _, alone = sides_of(shape, Sides(4, 1))
    _, each = sides_of(shape, Sides(4, 4))
    assert 4 * total(each, "flops") == pytest.approx(total(alone, "flops"))
    assert 4 * total(each, "weight_bytes") == pytest.approx(total(alone, "weight_bytes"))


def test_more_ranks_of_attention_read_the_experts_no_more_often():
    """What the whole is for: weights are read once for the tokens of all ranks."""
    shape = shape_by_name("qwen3-30b-a3b")
    _, few = sides_of(shape, Sides(64, 4))
    _, many = sides_of(shape, Sides(128, 4))
    assert total(many, "flops") == pytest.approx(2 * total(few, "flops"))
    assert total(many, "weight_bytes") == pytest.approx(total(few, "weight_bytes"), rel=1e-6)


def test_rows_cross_once_for_each_expert_and_come_back():
    shape = shape_by_name("qwen3-30b-a3b")
    fp8 = Precision.of("fp8")
    there, back = crossings(shape, 10, fp8, Sides(2, 2))
    rows = 10 * shape.experts.per_token * shape.hidden
    assert (there.link_bytes, back.link_bytes) == (rows * 1, rows * 2)
    assert there.times == back.times == shape.layers
    dense = shape_by_name("llama-3.1-8b")
    assert [op.link_bytes for op in crossings(dense, 10, BF16, Sides(2, 2))] == [10 * dense.hidden * 2] * 2


def test_the_busier_side_decides_how_long_rows_take():
    shape = shape_by_name("llama-3.1-8b")

    def bytes_of(sides, tensor=1):
        return crossings(shape, 10, BF16, sides, tensor=tensor)[0].link_bytes

    assert bytes_of(Sides(1, 4)) == bytes_of(Sides(4, 4))  # each rank sends its own
    assert bytes_of(Sides(8, 4)) == 2 * bytes_of(Sides(4, 4))  # each device there gets two ranks' rows
    assert bytes_of(Sides(1, 4), tensor=2) == bytes_of(Sides(1, 4)) / 2


def test_some_layers_dense_and_others_not():
    shape = shape_by_name("deepseek-v3")
    times = [op.times for op in crossings(shape, 10, BF16, Sides(8, 8))]
    assert times == [shape.dense_layers] * 2 + [shape.sparse_layers] * 2


def test_from_text_with_copies_that_make_devices_alike():
    assert Sides.parse("2x6", shape_by_name("qwen3-30b-a3b")) == Sides(2, 6, 3, redundant=4)
    assert Sides.parse("1x4", shape_by_name("llama-3.1-8b"), batches=2) == Sides(1, 4, 2)
    assert str(Sides(2, 6)) == "2A+6F"


@pytest.mark.parametrize(
    ("text", "says"),
    [("2", "'2' is no pair"), ("axb", "no pair"), ("0x2", "attention"), ("2x0", "ffn"), ("2x-1", "ffn")],
)
def test_what_is_no_pair_is_refused(text, says):
    with pytest.raises(InvalidRequestError, match=says):
        Sides.parse(text, shape_by_name("qwen3-30b-a3b"))


def test_what_cannot_be_shared_out_is_refused():
    with pytest.raises(InvalidRequestError, match="batches"):
        Sides(1, 1, batches=0)
    with pytest.raises(InvalidRequestError, match="128 experts and 0 copies cannot be shared out among 3"):
        Sides(1, 3).check(shape_by_name("qwen3-30b-a3b"))
    with pytest.raises(InvalidRequestError, match="the model has none"):
        Sides(1, 2, redundant=2).check(shape_by_name("llama-3.1-8b"))
    with pytest.raises(InvalidRequestError, match=r"intermediate \(14336\) cannot be split over 5"):
        Sides(1, 5).check(shape_by_name("llama-3.1-8b"))
