"""What a model takes of a device, and what does not fit."""

import math
from dataclasses import replace

import pytest

from miniserve.errors import InvalidRequestError
from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.efficiency import IDEAL
from miniserve.hardware.shape import Parallel
from miniserve.simulate.deployment import efficiency_for, kernels_of
from miniserve.simulate.models import known_models, shape_by_name
from miniserve.simulate.speculation import Speculation


@pytest.mark.parametrize("name", known_models())
def test_sizes_make_the_published_number_of_parameters(name):
    model = known_models()[name]
    assert model.shape.parameters == pytest.approx(model.parameters, rel=0.01)


def test_memory_by_hand(make):
    shape = shape_by_name("llama-3.1-8b")
    deployment = make(shape=shape)
    assert deployment.weight_bytes == 2 * shape.parameters
    assert deployment.kv_token_bytes == 2 * 32 * 8 * 128 * 2
    assert deployment.num_blocks == int((0.9 * 80e9 - 2 * shape.parameters) // (64 * 2 * 32 * 8 * 128 * 2))
    half = make(shape=shape, tensor=2)
    assert (half.weight_bytes, half.kv_token_bytes) == (deployment.weight_bytes / 2, deployment.kv_token_bytes / 2)
    eighth = make(shape=shape, weights="fp8")
    embeddings = 2 * shape.vocab * shape.hidden
    assert eighth.weight_bytes == shape.parameters - embeddings + 2 * embeddings
    wide = make(shape=shape, tensor=16, hardware="gb200")
    assert wide.kv_token_bytes == 2 * 32 * 128 * 2  # more devices than KV heads: each has one
    assert wide.kv_sent_bytes == deployment.kv_token_bytes


def test_experts_are_shared_out(make):
    shape = shape_by_name("qwen3-30b-a3b")
    routed = 3 * shape.layers * shape.hidden * 128 * 768
    one = make(shape=shape, hardware="h200")
    four = type(one)(one.device, shape, one.precision, Parallel(expert=4))
    assert one.weight_bytes - four.weight_bytes == pytest.approx(2 * routed * 3 / 4)


def test_a_latent_cache_is_not_shared_out(make):
    """70,272 bytes a token in bfloat16, on each of 8 devices, and once over a link."""
    shape = shape_by_name("deepseek-v3")
    one, eight = (make(shape=shape, tensor=tensor, weights="fp8_block") for tensor in (1, 8))
    assert one.kv_token_bytes == eight.kv_token_bytes == eight.kv_sent_bytes == 70_272
    assert eight.weight_bytes == pytest.approx(one.weight_bytes / 8)


def test_a_rank_of_a_wide_mixture(make):
    """DeepSeek's decode unit: 144 ranks with 2 of 256 + 32 experts each, and the whole of the rest (in FP8: 15 GB)."""
    shape = shape_by_name("deepseek-v3")
    one = make(shape=shape, weights="fp8")
    rank = replace(one, parallel=Parallel(1, 144, 32))
    routed = 58 * 3 * 7168 * 2048
    rest = shape.parameters - 256 * routed - 2 * shape.vocab * shape.hidden
    assert rank.weight_bytes == rest + 2 * routed + 4 * shape.vocab * shape.hidden
    assert 15e9 < rest < 15.5e9
    assert rank.num_devices == 1
    assert rank.parallel.num_devices == 144
    assert rank.num_blocks > 0


def test_a_draft_head_takes_a_layer_of_memory(make):
    plain = make(weights="bf16")
    drafting = replace(plain, speculation=Speculation((0.8,)))
    layer = 2 * (256 * (2 * 8 + 2 * 2) * 32 + 3 * 256 * 512)
    assert drafting.weight_bytes - plain.weight_bytes == layer + 2 * 2 * 256**2
    assert drafting.kv_token_bytes == plain.kv_token_bytes * 5 / 4 == drafting.kv_sent_bytes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"imbalance": 0.5}, "imbalance is 0.5"),
        ({"imbalance": math.nan}, "imbalance is nan"),
        ({"overhead_s": -1.0}, "overhead_s is -1"),
        ({"overhead_s": math.inf}, "overhead_s is inf"),
        ({"hardware": "h100", "tensor": 16}, "16 devices cannot share each layer: the links of a .* join 8"),
    ],
)
def test_nonsense_is_refused(make, options, message):
    with pytest.raises(InvalidRequestError, match=message):
        make(shape=shape_by_name("llama-3.1-8b"), **options)


def test_a_group_beyond_the_links_needs_a_network(make):
    shape = shape_by_name("qwen3-30b-a3b")
    assert replace(make(shape=shape), parallel=Parallel(expert=16)).parallel.num_devices == 16
    alone = replace(load_catalog().accelerator("h100"), figures={
        name: figure for name, figure in load_catalog().accelerator("h100").figures.items() if "network" not in name
    })  # fmt: skip
    replace(make(shape=shape), device=alone, parallel=Parallel(expert=8))
    with pytest.raises(InvalidRequestError, match="has no 'network_bandwidth"):
        replace(make(shape=shape), device=alone, parallel=Parallel(expert=16))
    idle = replace(alone, figures=alone.figures | {
        "link_bandwidth_bytes_per_s": replace(alone.figure("link_bandwidth_bytes_per_s"), value=0.0)
    })  # fmt: skip
    with pytest.raises(InvalidRequestError, match="link_bandwidth of 0"):
        replace(make(shape=shape), device=idle, parallel=Parallel(expert=8))


def test_what_does_not_fit_says_by_how_much(make):
    with pytest.raises(InvalidRequestError, match=r"weights of 131\.4 GiB a device, of which 67\.1 GiB may be used"):
        _ = make(shape=shape_by_name("llama-3.1-70b")).num_blocks
    with pytest.raises(InvalidRequestError, match="heads"):
        make(shape=shape_by_name("smollm2"), tensor=2)
    with pytest.raises(InvalidRequestError, match="memory_share"):
        make(memory_share=0.0)
    with pytest.raises(InvalidRequestError, match=r"near it: .*llama-3\.1-70b"):
        shape_by_name("llama-70b")


def test_kernels_of_a_generation_stand_in_for_one_another():
    catalog = load_catalog()
    assert efficiency_for(catalog.accelerator("h200")).name == "h100"
    assert efficiency_for(catalog.accelerator("a100-80")).name == "a100-80"
    assert efficiency_for(catalog.accelerator("t4")) is IDEAL
    llama, deepseek = shape_by_name("llama-3.1-8b"), shape_by_name("deepseek-v3")
    hopper, blackwell = (efficiency_for(catalog.accelerator(key)) for key in ("h800", "gb200"))
    assert kernels_of(IDEAL, llama) == "the roofline: a lower bound"
    assert kernels_of(blackwell, llama) == "fitted to timings on b200"
    assert kernels_of(hopper, deepseek) == "fitted to timings on h100"
    assert kernels_of(blackwell, deepseek) == "fitted to timings on b200; decode attention at the roofline"
