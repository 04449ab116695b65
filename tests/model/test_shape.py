"""Sizes from a config.json: of families with a decoder as the decoder has them, of DeepSeek's as published."""

import json

import pytest

from miniserve.errors import InvalidRequestError, UnsupportedModelError
from miniserve.model.config_hf import read_hf_config
from miniserve.model.shape import read_shape, shape_of
from miniserve.simulate.models import known_models, shape_by_name
from support import tiny_models

#: As published with DeepSeek-V3; what is no size is left out, but for one.
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128, "n_shared_experts": 1,
    "n_routed_experts": 256, "num_experts_per_tok": 8, "moe_layer_freq": 1, "first_k_dense_replace": 3,
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128,
    "tie_word_embeddings": False, "routed_scaling_factor": 2.5,
}  # fmt: skip
V2_LITE = DEEPSEEK_V3 | {
    "model_type": "deepseek_v2", "vocab_size": 102400, "hidden_size": 2048, "intermediate_size": 10944,
    "moe_intermediate_size": 1408, "num_hidden_layers": 27, "num_attention_heads": 16, "n_shared_experts": 2,
    "n_routed_experts": 64, "num_experts_per_tok": 6, "first_k_dense_replace": 1, "q_lora_rank": None,
}  # fmt: skip


def written(folder, fields):
    (folder / "config.json").write_text(json.dumps(fields))
    return folder / "config.json"


@pytest.mark.parametrize(("name", "fields"), [("deepseek-v3", DEEPSEEK_V3), ("deepseek-v2-lite", V2_LITE)])
def test_deepseek_is_read_as_it_is_known(tmp_path, name, fields):
    assert read_shape(written(tmp_path, fields)) == known_models()[name].shape
    assert shape_by_name(str(tmp_path)) == known_models()[name].shape


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_other_families_are_the_decoders(tmp_path, family):
    tiny_models.save(family, tmp_path)
    assert read_shape(tmp_path / "config.json") == shape_of(read_hf_config(tmp_path / "config.json"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kv_lora_rank": None}, UnsupportedModelError, "kv_lora_rank is missing"),
        ({"moe_layer_freq": 2}, UnsupportedModelError, "moe_layer_freq = 2"),
        ({"qk_rope_head_dim": 0}, InvalidRequestError, "its sizes are at least 1"),
        ({"first_k_dense_replace": 99}, InvalidRequestError, "99 of 61 layers"),
        ({"num_experts_per_tok": 999}, InvalidRequestError, "to 999 of 256 experts"),
        ({"model_type": "deepseek_v9"}, UnsupportedModelError, "'deepseek_v9' is not supported"),
    ],
)
def test_what_makes_no_sense_is_named(tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        read_shape(written(tmp_path, DEEPSEEK_V3 | change))
