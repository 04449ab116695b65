"""The decoder against transformers: the same weights must give the same logits, for every family and both formats."""

import pytest
import torch

from miniserve.model.cache import ContiguousCache, NoCache
from miniserve.model.checkpoint_gguf import GGUFCheckpoint
from miniserve.model.checkpoint_hf import SafetensorsCheckpoint
from miniserve.model.weights import load_weights
from support import tiny_models

CPU = torch.device("cpu")
TOKENS = torch.randint(3, 128, (40,), generator=torch.Generator().manual_seed(1))


def logits_of(decoder, tokens=TOKENS):
    with torch.inference_mode():
        return decoder.logits(decoder(tokens, torch.arange(len(tokens)), NoCache(decoder.config)))


def reference_logits(model, tokens=TOKENS):
    with torch.inference_mode():
        return model(tokens[None]).logits[0].float()


@pytest.mark.parametrize("family", tiny_models.CONFIGS)
def test_safetensors_logits_equal_transformers(family, tiny_directory):
    directory, reference = tiny_directory(family)
    decoder = load_weights(SafetensorsCheckpoint(directory), dtype=torch.float32, device=CPU)
    expected = reference_logits(reference)
    assert expected.abs().max() > 0.1, "the comparison must not be between zeros"
    assert (logits_of(decoder) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("family", tiny_models.GGUF_ARCHITECTURES)
def test_gguf_logits_equal_transformers(family, tmp_path, tiny_directory):
    _, reference = tiny_directory(family)
    path = tmp_path / "model.gguf"
    tiny_models.export_gguf(reference, family, path)
    decoder = load_weights(GGUFCheckpoint(path), dtype=torch.float32, device=CPU)
    assert (logits_of(decoder) - reference_logits(reference)).abs().max() < 1e-4


@pytest.mark.parametrize("family", ["llama3-rope", "mixtral"])
def test_sharded_checkpoint_equals_whole(family, tmp_path, tiny_directory):
    model = tiny_models.save(family, tmp_path, shard_bytes=100_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    decoder = load_weights(SafetensorsCheckpoint(tmp_path), dtype=torch.float32, device=CPU)
    assert (logits_of(decoder) - reference_logits(model)).abs().max() < 1e-4


@pytest.mark.parametrize("family", ["llama", "qwen3", "olmoe"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision_stays_near_float32(family, dtype, tolerance, tiny_directory):
    """Relative error of the logits in norm: about the dtype's rounding (2^-8, 2^-11) times the depth.

    Of the median token: rounding may send some tokens of a mixture to another expert.
    """
    directory, reference = tiny_directory(family)
    decoder = load_weights(SafetensorsCheckpoint(directory), dtype=dtype, device=CPU)
    expected, got = reference_logits(reference), logits_of(decoder)
    assert got.dtype is torch.float32
    assert ((got - expected).norm(dim=-1) / expected.norm(dim=-1)).median() < tolerance


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3_moe"])
@pytest.mark.parametrize("pieces", [[40], [1] * 40, [7, 1, 20, 12], [39, 1]])
def test_cache_in_any_pieces_equals_one_pass(family, pieces, tiny_directory):
    directory, _ = tiny_directory(family)
    decoder = load_weights(SafetensorsCheckpoint(directory), dtype=torch.float32, device=CPU)
    cache = ContiguousCache(decoder.config, len(TOKENS), dtype=torch.float32, device=CPU)
    rows = []
    with torch.inference_mode():
        for part in TOKENS.split(pieces):
            positions = torch.arange(cache.length, cache.length + len(part))
            rows.append(decoder.logits(decoder(part, positions, cache)))
            cache.advance(len(part))
    assert (torch.cat(rows) - logits_of(decoder)).abs().max() < 1e-4


def test_llama3_rope_matters_at_these_lengths(tiny_directory):
    """Guards the test above: with the scaling dropped the logits must differ."""
    directory, reference = tiny_directory("llama3-rope")
    decoder = load_weights(SafetensorsCheckpoint(directory), dtype=torch.float32, device=CPU)
    head_dim = decoder.config.head_dim
    decoder.inverse_frequencies = 1.0 / 500000.0 ** (torch.arange(0, head_dim, 2).float() / head_dim)
    assert (logits_of(decoder) - reference_logits(reference)).abs().max() > 1e-3
