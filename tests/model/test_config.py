"""Configurations: what is accepted comes out right, and what the decoder cannot do is refused by name."""

import json

import pytest

from miniserve.errors import CorruptFileError, MiniserveError, UnsupportedModelError
from miniserve.model.config_hf import llama3_divisors, read_hf_config
from miniserve.model.decoder import Decoder
from support import tiny_models

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "vocab_size": 128,
}


def read(tmp_path, changes=None, **fields):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**LLAMA, **(changes or {}), **fields}))
    return read_hf_config(path)


def test_minimal_llama(tmp_path):
    config = read(tmp_path)
    assert (config.num_kv_heads, config.head_dim, config.rope.theta) == (2, 16, 10000.0)
    assert config.moe is None
    assert not config.tie_embeddings


def test_both_spellings_of_rope(tmp_path):
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    old = read(tmp_path, rope_theta=5e5, rope_scaling={"rope_type": "llama3", **scaling})
    oldest = read(tmp_path, rope_theta=5e5, rope_scaling={"type": "llama3", **scaling})
    new = read(tmp_path, rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **scaling})
    assert old.rope == oldest.rope == new.rope
    assert new.rope.divisors == llama3_divisors(
        5e5, 16, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=64
    )
    assert max(new.rope.divisors) == 8.0
    assert min(new.rope.divisors) == 1.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "gpt2"),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("sliding_window", 128),
        ("layer_types", ["sliding_attention", "full_attention"]),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("rope_scaling", {"rope_type": "default", "mystery": 2}),
        ("partial_rotary_factor", 0.5),
        ("clip_qkv", 8.0),
        ("final_logit_softcapping", 30.0),
        ("num_key_value_heads", 3),
        ("head_dim", 15),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", 10**9),
        ("hidden_size", -64),
        ("vocab_size", 10**12),
        ("num_attention_heads", 0),
    ],
)
def test_refuses_by_name_what_the_decoder_cannot_do(tmp_path, field, value):
    with pytest.raises(UnsupportedModelError) as caught:
        read(tmp_path, {field: value})
    named = {"num_key_value_heads": "num_kv_heads", "num_hidden_layers": "num_layers", "rope_scaling": "rope"}
    assert named.get(field, field) in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_size", "64"), ("hidden_size", 64.5), ("hidden_size", True), ("rms_norm_eps", "x"), ("rope_theta", []),
     ("tie_word_embeddings", 1), ("model_type", 3), ("rope_scaling", 3), ("hidden_size", 1e400)],
)  # fmt: skip
def test_wrong_types_name_the_field(tmp_path, field, value):
    with pytest.raises(CorruptFileError, match="rope" if "rope" in field else field):
        read(tmp_path, {field: value})


def test_missing_field_is_named(tmp_path):
    with pytest.raises(MiniserveError, match="hidden_size is missing"):
        read(tmp_path, hidden_size=None)


def test_window_that_changes_nothing_is_accepted(tmp_path):
    assert read(tmp_path, model_type="mistral", sliding_window=256)
    assert read(tmp_path, model_type="qwen2", sliding_window=32, use_sliding_window=False)


def test_unknown_field_that_is_off_is_accepted(tmp_path):
    assert read(tmp_path, some_new_feature=False, another=None, _private="x")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"model_type": ' + b"9" * 5000 + b"}"]
)
def test_broken_json_names_the_file(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"config\.json"):
        read_hf_config(path)


@pytest.mark.parametrize("family", tiny_models.CONFIGS)
def test_parameter_counts_equal_the_decoder_and_transformers(family, tiny_directory):
    import torch

    directory, reference = tiny_directory(family)
    config = read_hf_config(directory / "config.json")
    decoder = Decoder(config, dtype=torch.float32, device=torch.device("meta"))
    assert config.num_parameters() == sum(p.numel() for p in decoder.parameters())
    assert config.num_parameters() == sum(p.numel() for p in reference.parameters())


def test_active_parameters_count_chosen_experts_only(tiny_directory):
    config = read_hf_config(tiny_directory("mixtral")[0] / "config.json")
    idle = config.num_layers * 2 * 3 * config.hidden_size * config.moe.intermediate_size  # two of four experts idle
    assert config.num_parameters() - config.num_active_parameters() == idle
