"""Attention and feed-forward parts apart: together they are the model, and what crosses is counted once."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniserve.errors import InvalidRequestError
from miniserve.hardware.afd import Sides, Way, attention_side, both_ends, crossings, feed_forward_side
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
    at = {at: crossings(shape, 10, BF16, Sides(2, 8), at=at)[0].link_bytes for at in ("attention", "ffn", "busier")}
    assert at["busier"] == at["attention"] == 4 * at["ffn"]


def test_some_layers_dense_and_others_not():
    shape = shape_by_name("deepseek-v3")
    times = [op.times for op in crossings(shape, 10, BF16, Sides(8, 8))]
    assert times == [shape.dense_layers] * 2 + [shape.sparse_layers] * 2


def test_from_text_with_copies_that_make_devices_alike():
    assert Sides.parse("2x6", shape_by_name("qwen3-30b-a3b")) == Sides(2, 6, 3, redundant=4)
    assert Sides.parse("1x4", shape_by_name("llama-3.1-8b"), batches=2) == Sides(1, 4, 2)
    assert str(Sides(2, 6)) == "2A+6F"
    staged = Sides.parse("8x128x4", shape_by_name("qwen3-30b-a3b"))
    assert (staged, str(staged), staged.ffn_devices) == (Sides(8, 128, 3, stages=4), "8A+128Fx4", 512)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("2", "'2' is no pair"),
        ("axb", "no pair"),
        ("2x2x2x2", "no pair"),
        ("2x2x0", "stages"),
        ("0x2", "attention"),
        ("2x0", "ffn"),
        ("2x-1", "ffn"),
    ],
)
def test_what_is_no_pair_is_refused(text, says):
    with pytest.raises(InvalidRequestError, match=says):
        Sides.parse(text, shape_by_name("qwen3-30b-a3b"))


def test_what_cannot_be_shared_out_is_refused():
    with pytest.raises(InvalidRequestError, match="batches"):
        Sides(1, 1, batches=0)
    with pytest.raises(InvalidRequestError, match="128 experts and 0 copies cannot be shared out among 3"):
        Sides(1, 3).check(shape_by_name("qwen3-30b-a3b"))
    with pytest.raises(InvalidRequestError, match="can be stages of layers: 2x128x4"):
        Sides.parse("2x512", shape_by_name("qwen3-30b-a3b")).check(shape_by_name("qwen3-30b-a3b"))
    with pytest.raises(InvalidRequestError, match="33 stages: the model has 32 layers"):
        Sides(1, 1, stages=33).check(shape_by_name("llama-3.1-8b"))
    with pytest.raises(InvalidRequestError, match="the model has none"):
        Sides(1, 2, redundant=2).check(shape_by_name("llama-3.1-8b"))
    with pytest.raises(InvalidRequestError, match=r"intermediate \(14336\) cannot be split over 5"):
        Sides(1, 5).check(shape_by_name("llama-3.1-8b"))


@given(
    name=st.sampled_from(["llama-3.1-8b", "qwen3-30b-a3b", "deepseek-v3"]), ffn=st.sampled_from([1, 4, 16]),
    stages=st.integers(1, 28), stays=st.booleans(),
)  # fmt: skip
def test_a_stage_holds_the_most_of_each_kind_of_layer(name, ffn, stages, stays):
    """Layer by layer, dealt out in turn: sparse ones and dense ones each for themselves."""
    shape = shape_by_name(name)
    hidden, dense = shape.hidden, shape.layers - shape.sparse_layers
    of_stage = [0.0] * stages
    for at in range(dense):
        of_stage[at % stages] += 3 * hidden * shape.intermediate / ffn
    for at in range(shape.sparse_layers):
        experts = shape.experts
        shared = 0 if stays else experts.shared
        of_stage[at % stages] += 3 * hidden * (experts.count / ffn * experts.intermediate + shared)
    found = Sides(2, ffn, stages=stages, shared_stays=stays).parameters(shape)
    assert found == pytest.approx(of_stage[0])
    assert found == pytest.approx(max(of_stage))


def test_stages_change_what_a_device_holds_and_nothing_else():
    shape = shape_by_name("qwen3-30b-a3b")
    one, four = sides_of(shape, Sides(4, 8)), sides_of(shape, Sides(4, 8, stages=4))
    assert one == four
    assert Sides(4, 8, stages=4).parameters(shape) == Sides(4, 8).parameters(shape) / 4


@pytest.mark.parametrize("quantity", ["flops", "weight_bytes", "activation_bytes"])
def test_shared_parts_are_computed_on_one_side_or_the_other(quantity):
    shape, decodes = shape_by_name("deepseek-v3"), Parts(8, 8, 8000, 8000, 1000)
    for ranks, tensor in ((1, 1), (3, 2)):
        gone, stay = Sides(ranks, 1), Sides(ranks, 1, shared_stays=True)
        here = [
            total(attention_side(shape, Parts(), decodes, BF16, tensor, with_shared=each.shared_stays), quantity)
            for each in (gone, stay)
        ]
        there = [total(feed_forward_side(shape, 8 * ranks, BF16, each), quantity) for each in (gone, stay)]
        times = ranks if quantity == "flops" else 1
        if ranks == 1 or quantity == "flops":  # all ranks' devices together do what the one of the other side did
            assert times * tensor * (here[1] - here[0]) == pytest.approx(there[0] - there[1])
        assert here[1] > here[0]
        assert there[0] > there[1]


def test_a_way_takes_its_bytes_and_its_latency_in_every_layer():
    shape = shape_by_name("llama-3.1-8b")
    there, back = crossings(shape, 10, BF16, Sides(2, 2))
    seconds = Way(100e9, 3e-6).seconds(there) + Way(100e9, 3e-6).seconds(back)
    assert seconds == pytest.approx(2 * shape.layers * (10 * shape.hidden * 2 / 100e9 + 3e-6))
    for bandwidth, latency_s in ((0, 0), (math.inf, 0), (1, -1), (1, math.inf)):
        with pytest.raises(InvalidRequestError, match="between the two sides"):
            Way(bandwidth, latency_s)
