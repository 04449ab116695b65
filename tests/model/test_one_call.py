"""All layers in one call: the decoder's own results, bit for bit, in every form of the weights."""

import pytest
import torch

from miniserve.core.executor import Scheduled, Step
from miniserve.core.request import Request
from miniserve.core.sampling_params import Limits
from miniserve.model.load import load_model
from miniserve.model.one_call import OneCall
from miniserve.runtime.batch import Batch
from miniserve.runtime.kv_cache import KVCache
from miniserve.runtime.paged_attention import PagedAttention

FORMS = [{"dtype": "float32"}, {"dtype": "bfloat16"}, {"quantization": "int8"}, {"quantization": "int4"}]
BLOCK = 4


@pytest.fixture(autouse=True)
def no_bfloat16_products(monkeypatch):
    """Or this processor's would be used for a step of 17 tokens."""
    monkeypatch.setattr("miniserve.kernels.cpu.linear.has_bf16_products", lambda: False)


def batch():
    """A prompt, a chunk in the middle of another, and one token of a third."""
    parts = []
    for number, (start, count) in enumerate([(0, 11), (6, 5), (9, 1)]):
        request = Request(f"r{number}", [(7 * i + number) % 128 for i in range(start + count)], Limits(4))
        request.block_table.extend(range(10 * number, 10 * number + 4))
        parts.append(Scheduled(request, start, count))
    return Batch.from_step(Step(parts), BLOCK, torch.device("cpu"))


@pytest.mark.parametrize("family", ["llama", "smollm2", "qwen2", "qwen3", "llama3-rope", "mixtral"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_equals_the_decoder(compiled, tiny_directory, family, form):
    model = load_model(str(tiny_directory(family)[0]), device="cpu", backend="cpu", **form)
    decoder, step = model.decoder, batch()
    caches = [KVCache(model.config, 30, BLOCK, dtype=decoder.dtype, device=torch.device("cpu")) for _ in range(2)]
    for cache in caches:  # what is in the middle of a sequence already
        for layer in range(model.config.num_layers):
            for at, part in enumerate(cache.layer(layer)):
                part.copy_(torch.randn(part.shape, generator=torch.Generator().manual_seed(2 * layer + at)))
    call = OneCall.of(decoder)
    assert call is not None
    assert call.is_faster(len(step.token_ids))
    with torch.inference_mode():
        together = call(step.token_ids, step.positions, caches[0].layers, step.paged)
        one_by_one = decoder(step.token_ids, step.positions, PagedAttention(decoder.ops, caches[1], step))
    assert torch.equal(together, one_by_one)
    for mine, theirs in zip(caches[0].layers, caches[1].layers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_counts_what_the_decoder_counts(compiled, tiny_directory):
    decoder, step = load_model(str(tiny_directory("mixtral")[0]), device="cpu", backend="cpu").decoder, batch()
    counts, cache = (
        decoder.count_experts(),
        KVCache(decoder.config, 30, BLOCK, dtype=decoder.dtype, device=decoder.device),
    )
    with torch.inference_mode():
        OneCall.of(decoder)(step.token_ids, step.positions, cache.layers, step.paged)
        together = counts.clone()
        counts.zero_()
        decoder(step.token_ids, step.positions, PagedAttention(decoder.ops, cache, step))
    assert torch.equal(together, counts)
    assert (counts.sum(1) == len(step.token_ids) * decoder.config.moe.experts_per_token).all()


@pytest.mark.parametrize("family", ["olmoe", "qwen3_moe"])
def test_norms_over_all_heads_and_experts_of_48_are_left_to_the_decoder(tiny_directory, family):
    assert OneCall.of(load_model(str(tiny_directory(family)[0]), device="cpu").decoder) is None


def test_other_backends_are_left_to_the_decoder(tiny_directory):
    assert OneCall.of(load_model(str(tiny_directory("llama")[0]), device="cpu", backend="torch").decoder) is None
