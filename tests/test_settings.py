"""What an engine is built with, where that hangs on the backend."""

from dataclasses import replace

import pytest

from miniserve.errors import InvalidRequestError
from miniserve.model.load import load_model
from miniserve.settings import EngineSettings

OPTIONS = {"max_model_len": 64, "max_num_batched_tokens": None, "max_num_seqs": 4, "kv_cache_memory": 2**22}
OPTIONS |= {"memory_fraction": None, "prefix_caching": True}


@pytest.fixture
def on_triton(tiny_directory):
    """A model that says its backend is Triton; settings ask no more than that."""
    model = load_model(str(tiny_directory("llama")[0]), device="cpu", backend="torch")
    return replace(model, choices=replace(model.choices, backend="triton"))


@pytest.mark.parametrize("asked", [True, False])
def test_graphs_where_kernels_never_wait(on_triton, asked):
    assert EngineSettings.decide(on_triton, block_size=16, cuda_graphs=asked, **OPTIONS).cuda_graphs == asked
    plain = replace(on_triton, choices=replace(on_triton.choices, backend="torch"))
    assert not EngineSettings.decide(plain, block_size=16, cuda_graphs=asked, **OPTIONS).cuda_graphs


def test_a_block_size_that_the_kernels_do_not_take(on_triton):
    with pytest.raises(
        InvalidRequestError, match="block_size is 24: with the Triton kernels it must be a multiple of 16"
    ):
        EngineSettings.decide(on_triton, block_size=24, cuda_graphs=True, **OPTIONS)
