"""What the runner does besides computing steps, which `test_equivalence` is about."""

import pytest
import torch

from miniserve.model.load import load_model
from miniserve.runtime.kv_cache import KVCache
from miniserve.runtime.model_runner import ModelRunner


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_warming_up_writes_nothing(tiny_directory, backend):
    model = load_model(str(tiny_directory("llama")[0]), device="cpu", backend=backend)
    cache = KVCache(model.config, 2, 16, dtype=model.decoder.dtype, device=torch.device("cpu"))
    for each in cache.keys + cache.values:
        each.normal_()
    before = [each.clone() for each in cache.keys + cache.values]
    ModelRunner(model.decoder, cache, 16).warm_up()
    assert all(map(torch.equal, cache.keys + cache.values, before))
