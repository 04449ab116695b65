"""Decoders in SRAM: against arithmetic of their own, whatever the model, the load and the split."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.errors import InvalidRequestError
from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.shape import Precision
from miniserve.simulate.models import shape_by_name
from miniserve.simulate.sram import all_in, decode_in_sram

LPU = load_catalog().accelerator("lp30")
ROOM = 0.9 * 500e6
FP8 = all_in("fp8")
MODELS = ("llama-3.1-8b", "llama-3.1-70b", "qwen3-30b-a3b", "deepseek-v3")


def spread(name="llama-3.1-8b", **options):
    return decode_in_sram(LPU, shape_by_name(name), FP8, **options)


@st.composite
def spreads(draw):
    name = draw(st.sampled_from(MODELS))
    options = {
        "requests": draw(st.integers(1, 300)), "context": draw(st.integers(0, 20_000)),
        "latency_s": draw(st.sampled_from([0.0, 1e-6, 2e-5])),
    }  # fmt: skip
    least = spread(name, **options).sharing
    return name, options | {"sharing": draw(st.integers(least, 256))}


@settings(max_examples=60, deadline=None)
@given(spreads())
def test_chips_hold_the_model_and_its_kv_and_no_stage_is_spare(case):
    name, options = case
    shape, found = shape_by_name(name), spread(name, **options)
    assert found.weight_bytes == pytest.approx(shape.parameters + (shape.embedding_parameters if shape.tied else 0))
    assert found.kv_bytes == options["requests"] * options["context"] * shape.kv_elements
    assert found.weight_bytes + found.kv_bytes <= found.chips * ROOM
    of_layers = found.weight_bytes - 2 * shape.embedding_parameters + found.kv_bytes
    if not shape.experts:  # layers are alike: each stage has as many as it holds
        held = math.floor(found.sharing * ROOM / (of_layers / shape.layers) * (1 + 1e-12))
        assert found.stages == math.ceil(shape.layers / held)
    else:
        assert of_layers / found.sharing / ROOM <= found.stages <= shape.layers


@settings(max_examples=60, deadline=None)
@given(spreads())
def test_a_token_takes_its_way_and_its_messages(case):
    name, options = case
    shape, found = shape_by_name(name), spread(name, **options)
    sums = 2 * shape.layers if found.sharing > 1 else 0
    assert found.messages == sums + found.stages + 1
    row = options["requests"] / found.groups * shape.hidden * 2
    passed = (found.stages + 1) * row + sums * 2 * (found.sharing - 1) / found.sharing * row
    assert found.passing_s == pytest.approx(passed / LPU.link_bandwidth)
    parts = found.computing_s + found.passing_s + found.messages * options["latency_s"] + found.waiting_s
    assert found.token_s == pytest.approx(parts)
    assert found.tokens_per_s == pytest.approx(options["requests"] * found.tokens_per_s_user)
    assert found.groups == min(options["requests"], found.stages + 1)
    if options["requests"] == 1:
        assert found.waiting_s == 0


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(MODELS), context=st.integers(0, 100_000), wider=st.integers(1, 4))
def test_a_lone_token_reads_what_is_active_at_all_a_stages_bandwidth(name, context, wider):
    """Weights and KV alone bound it from below; activations add little to a lone token."""
    shape = shape_by_name(name)
    found = spread(name, context=context, sharing=wider * spread(name, context=context).sharing)
    ends = found.chips - found.stages * found.sharing
    read = (shape.active_parameters - shape.embedding_parameters + context * shape.kv_elements) / found.sharing
    read += shape.embedding_parameters / ends
    assert found.computing_s * 150e12 >= read * (1 - 1e-9)
    compute = 2 * context * shape.layers * shape.heads * (shape.head_dim + (shape.latent.kept if shape.latent else 0))
    if 2 * compute < 1.2e15 / 150e12 * context * shape.kv_elements:  # reading is what bounds attention
        assert found.computing_s * 150e12 == pytest.approx(read, rel=0.1)


def test_by_hand():
    """Llama-3.1-8B: 32 layers of 218 MB, so two on a chip, and both ends in 1.05 GB on three."""
    shape = shape_by_name("llama-3.1-8b")
    layer = 4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336
    alone = spread()
    assert (alone.sharing, alone.stages, alone.chips, alone.messages) == (1, 16, 19, 17)
    assert alone.weight_bytes == 32 * layer + 2 * 4096 * 128256
    full = spread(requests=64, context=8192)  # of each layer's KV, 64 x 8,192 x 2,048 bytes
    assert full.kv_bytes == 64 * 8192 * 2048 * 32
    assert full.sharing == math.ceil((layer + 64 * 8192 * 2048) / ROOM) == 3
    assert shape.layers == full.stages


def test_every_user_has_kv_of_its_own():
    """Two users a group: weights once, two caches. An LPU's ridge of 8 FLOPs a byte is just these heads' intensity."""
    found = spread(requests=66, context=8192, sharing=3)
    assert (found.groups, found.chips) == (33, 99)
    layer = 4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336
    read = 32 * (layer + 2 * 8192 * 2048) + 4096 * 128256
    assert found.computing_s == pytest.approx(read / 3 / 150e12, rel=0.02)


def test_stages_that_differ_wait_for_the_slowest():
    """16 stages of two layers and one of both ends, which is sooner done: each round it waits so long."""
    found = spread(requests=17)
    assert found.groups == found.stages + 1 == 17
    end_s = (4096 * 128256 + 2 * 128256 + 4096) / 3 / 150e12 + 4096 * 2 / 1.25e12
    stage_s = (found.computing_s + found.passing_s - end_s) / 16
    assert found.waiting_s == pytest.approx(stage_s - end_s, rel=1e-3)


def test_latency_is_all_there_is_once_it_is_microseconds():
    fast, slow = (spread("llama-3.1-70b", sharing=32, latency_s=each) for each in (0.0, 1e-6))
    assert slow.token_s - fast.token_s == pytest.approx(fast.messages * 1e-6)
    assert slow.token_s > 5 * fast.token_s


def test_more_users_need_more_chips_and_cost_each_little():
    lone, many = (spread("llama-3.1-70b", context=8192, sharing=16, requests=each) for each in (1, 128))
    assert many.chips > 3 * lone.chips
    assert many.tokens_per_s > 50 * lone.tokens_per_s


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"requests": 0}, "there is 1 request at least"),
        ({"latency_s": -1.0}, "nothing below 0"),
        ({"memory_share": 0}, "in 0% of the memory"),
        ({"sharing": 0}, "0 chips have 0: share it among 1"),
        ({"requests": 64, "context": 8192, "sharing": 2}, "2 chips have 900: share it among 3"),
        ({"sharing": 257}, "257 chips cannot share a layer: the links of a NVIDIA Groq 3 LPU .* join 256"),
    ],
)
def test_what_cannot_be_is_refused(options, says):
    with pytest.raises(InvalidRequestError, match=says):
        spread(**options)


def test_a_format_that_the_chip_does_not_compute_in_is_refused():
    with pytest.raises(InvalidRequestError, match="no dense peak for 'bf16'; it has fp8"):
        decode_in_sram(LPU, shape_by_name("llama-3.1-8b"), Precision.of("fp8", "fp8"))
