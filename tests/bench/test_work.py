"""The least work of a step, against what torch counts while the step is computed."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from miniserve.bench.work import precision_of, step_work
from miniserve.core.step_record import PartRecord
from miniserve.hardware.shape import Precision
from miniserve.model.cache import NoCache
from miniserve.model.load import load_model

FLOAT32 = Precision.of("fp32")


@pytest.mark.parametrize("family", ["llama", "smollm2", "qwen3"])
def test_flops_are_those_torch_counts(family, tiny_directory):
    """Causal attention needs half the square; the kernel computes all of it and masks: that part is compared apart."""
    model = load_model(str(tiny_directory(family)[0]), dtype="float32", device="cpu", backend="torch")
    config, count = model.config, 40
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        hidden = model.decoder(torch.arange(3, 3 + count), torch.arange(count), NoCache(config))
        model.decoder.logits(hidden[-1:])
    attention = 4 * config.num_layers * config.num_heads * config.head_dim
    counted = counter.get_total_flops()
    whole_square = attention * count * count
    causal = attention * count * (count + 1) // 2
    matrices = counted - (whole_square if _counts_attention(counter) else 0)
    got = step_work(config, [PartRecord("a", 0, count, True)], FLOAT32).flops
    assert got == pytest.approx(matrices + causal, rel=0.02)


def _counts_attention(counter):
    names = {str(name) for kinds in counter.get_flop_counts().values() for name in kinds}
    return any("attention" in name or "bmm" in name for name in names)


def test_bytes_of_a_decode_step(tiny_directory):
    model = load_model(str(tiny_directory("llama")[0]), dtype="float32", device="cpu")
    config = model.config
    parts = [PartRecord("a", 99, 1, True), PartRecord("b", 19, 1, True)]
    weights = config.num_parameters() - config.vocab_size * config.hidden_size
    expected = (weights + 2 * config.hidden_size) * 4 + (100 + 20 + 2) * config.kv_bytes_per_token(4)
    assert step_work(config, parts, FLOAT32).bytes == pytest.approx(expected, rel=0.01)


def test_a_chunk_that_samples_nothing_skips_the_unembedding(tiny_directory):
    config = load_model(str(tiny_directory("smollm2")[0]), dtype="float32", device="cpu").config
    verified, once = (step_work(config, [PartRecord("a", 0, 4, True, drafted, 0)], FLOAT32).flops for drafted in (3, 0))
    assert verified - once == 3 * 2 * config.vocab_size * config.hidden_size
    with_sample, without = (step_work(config, [PartRecord("a", 0, 8, sampled)], FLOAT32) for sampled in (True, False))
    assert with_sample.flops - without.flops == 2 * config.vocab_size * config.hidden_size
    assert with_sample.bytes - without.bytes == 4 * config.vocab_size * config.hidden_size


def test_bytes_of_weights_of_few_bits(tiny_directory):
    """Per weight: 8 bits and half a scale for 32; 4 bits, and a scale and a minimum; norms stay as they are."""
    directory = str(tiny_directory("smollm2")[0])
    plain, eight, four = (
        precision_of(load_model(directory, device="cpu", **how).decoder)
        for how in ({"dtype": "float32"}, {"quantization": "int8"}, {"quantization": "int4"})
    )
    assert (plain.weight_bytes, plain.unembedding_bytes, plain.kv_bytes) == pytest.approx((4, 4, 4), rel=0.01)
    assert (eight.unembedding_bytes, four.unembedding_bytes) == (1 + 2 / 32, 1 + 2 / 32)
    assert eight.weight_bytes == pytest.approx(1 + 2 / 32, rel=0.02)
    assert four.weight_bytes == pytest.approx(0.5 + 4 / 32, rel=0.02)
