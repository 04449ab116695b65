"""A checkpoint that is written: transformers loads it and says the same, and so do we."""

import json

import pytest
import torch
import transformers as hf

from miniserve.errors import InvalidRequestError
from miniserve.model.cache import NoCache
from miniserve.model.checkpoint_hf import SafetensorsCheckpoint
from miniserve.model.config import ModelConfig, MoE, Rope
from miniserve.model.decoder import Decoder
from miniserve.model.save import hf_config, hf_tensors, save_weights
from miniserve.model.weights import load_weights
from miniserve.train.initialise import initialise

CPU = torch.device("cpu")


def decoder(family="qwen3", **changes):
    sizes = {
        "architecture": family, "vocab_size": 61, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
        "head_dim": 8, "intermediate_size": 48, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
        "rope": Rope(10000.0), "qk_norm": None if family == "llama" else "head", "tie_embeddings": family != "llama",
        "moe": MoE(4, 2, 24, True, frozenset({0})) if family == "qwen3_moe" else None,
    }  # fmt: skip
    made = Decoder(ModelConfig(**(sizes | changes)), dtype=torch.float32, device=CPU)
    initialise(made, 1)
    with torch.no_grad():
        for parameter in made.parameters():  # wide enough that a swap of two tensors would show
            parameter.mul_(1 + 5 * (parameter.dim() > 1))
    return made


def write(made, folder, dtype=torch.float32):
    save_weights(made, folder / "model.safetensors", dtype)
    (folder / "config.json").write_text(json.dumps(hf_config(made.config, dtype, eos_token_id=0)), encoding="utf-8")


def logits_of(made, ids):
    with torch.inference_mode():
        return made.logits(made(ids, torch.arange(len(ids)), NoCache(made.config)))


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe"])
def test_transformers_says_the_same(family, tmp_path):
    made, ids = decoder(family), torch.randint(0, 61, (12,), generator=torch.Generator().manual_seed(0))
    write(made, tmp_path)
    theirs = hf.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert type(theirs).__name__ == hf_config(made.config, torch.float32)["architectures"][0]
    with torch.inference_mode():
        expected = theirs(ids[None]).logits[0]
    assert torch.allclose(logits_of(made, ids), expected, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe"])
def test_it_comes_back_bit_by_bit(family, tmp_path):
    made, ids = decoder(family), torch.arange(9)
    write(made, tmp_path)
    checkpoint = SafetensorsCheckpoint(tmp_path)
    again = load_weights(checkpoint, dtype=torch.float32, device=CPU)
    assert checkpoint.config == ModelConfig(**(vars(made.config) | {"dtype": "float32"}))
    assert torch.equal(logits_of(made, ids), logits_of(again, ids))


def test_what_cannot_be_written_is_refused():
    made = decoder()
    with pytest.raises(InvalidRequestError, match="a mixtral cannot be written, only llama, qwen3, qwen3_moe"):
        hf_config(_other("mixtral"), torch.float32)
    with pytest.raises(InvalidRequestError, match="scaled RoPE"):
        hf_config(_other("llama", rope=Rope(1e4, (1.0,) * 4)), torch.float32)
    linear = made.layers[0].attention.out
    linear.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)
    with pytest.raises(InvalidRequestError, match=r"layers.0.attention.out.weight is packed"):
        hf_tensors(made, torch.float32)


def _other(family, **changes):
    return ModelConfig(**(vars(decoder("llama").config) | {"architecture": family} | changes))
