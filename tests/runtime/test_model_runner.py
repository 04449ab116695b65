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


def test_warming_up_computes_steps_of_every_tile(tiny_directory, monkeypatch):
    """A prompt of 162 tokens would wait for a kernel to be compiled otherwise."""
    few_rows = pytest.importorskip("miniserve.kernels.triton.few_rows")
    model, steps = load_model(str(tiny_directory("llama")[0]), device="cpu", backend="torch"), []
    cache = KVCache(model.config, 2, 16, dtype=model.decoder.dtype, device=torch.device("cpu"))
    runner = ModelRunner(model.decoder, cache, 16)
    monkeypatch.setattr(runner, "_compute_nowhere", lambda lengths: steps.append(sum(lengths)))
    runner.warm_up()
    tiles = {next((tile for tile in few_rows.TILES if tile >= rows), None) for rows in steps}
    assert tiles >= {*few_rows.TILES}
    longest = model.config.max_position_embeddings
    assert max(steps) == min(512, longest)
    assert longest <= few_rows.MOST_INT8_ROWS or max(steps) > few_rows.MOST_INT8_ROWS
