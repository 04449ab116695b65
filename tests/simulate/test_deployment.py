"""What a model takes of a device, and what does not fit."""

import pytest

from miniserve.errors import InvalidRequestError
from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.efficiency import IDEAL
from miniserve.hardware.shape import Parallel
from miniserve.simulate.deployment import efficiency_for
from miniserve.simulate.models import known_models, shape_by_name


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
    assert make(shape=shape, tensor=16).kv_token_bytes == 2 * 32 * 128 * 2  # more devices than KV heads: each has one


def test_experts_are_shared_out(make):
    shape = shape_by_name("qwen3-30b-a3b")
    routed = 3 * shape.layers * shape.hidden * 128 * 768
    one = make(shape=shape, hardware="h200")
    four = type(one)(one.device, shape, one.precision, Parallel(expert=4))
    assert one.weight_bytes - four.weight_bytes == pytest.approx(2 * routed * 3 / 4)


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
