"""Read a Hugging Face `config.json` into a `ModelConfig`.

The families that are known are those of `_FAMILIES`: Llama (SmolLM2 among them), Mistral, Qwen2, Qwen3, Mixtral, OLMoE,
Qwen3-MoE. Every field is translated, required to be inert, or listed as inert; an unknown one is refused by name. Both
spellings of RoPE are read: `rope_theta` with `rope_scaling`, and the newer `rope_parameters`. Torch-free.
"""

import math
from collections.abc import Callable
from pathlib import Path

from miniserve.errors import CorruptFileError, UnsupportedModelError
from miniserve.model.config import ModelConfig, MoE, Rope
from miniserve.model.fields import Fields, naming, read_json

# Training, bookkeeping, or read elsewhere (token ids: tokenizer; quantization_config: quantization_hf): no effect on
# the decoder's shape.
INERT = (
    "architectures", "attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id",
    "initializer_range", "is_llama_config", "max_window_layers", "model_type", "output_attentions",
    "output_hidden_states", "output_router_logits", "return_dict", "router_aux_loss_coef", "torch_dtype", "dtype",
    "transformers_version", "use_cache", "id2label", "label2id", "problem_type", "is_encoder_decoder",
    "chunk_size_feed_forward", "num_labels", "task_specific_params", "license", "unsloth_fixed", "unsloth_version",
    "quantization_config",
)  # fmt: skip
INERT_PREFIXES = ("_", "transformers.js")


def read_hf_config(path: Path) -> ModelConfig:
    """Translate the `config.json` at `path`.

    Raises:
        CorruptFileError: the file is not what it says, or a field has the wrong type.
        UnsupportedModelError: the model needs something the decoder does not implement; names field and value.
    """
    fields = Fields(read_json(path), path)
    family = fields.text("model_type")
    if family not in _FAMILIES:
        known = ", ".join(sorted(_FAMILIES))
        raise UnsupportedModelError(f"{path}: model_type = {family!r} is not supported. Supported: {known}")
    fields.must_be("hidden_act", "silu")
    fields.must_be("attention_bias", False)
    fields.must_be("mlp_bias", False)
    fields.must_be("rope_interleaved", False)
    fields.must_be("pretraining_tp", 1)
    fields.must_be("partial_rotary_factor", 1, 1.0)
    fields.must_be("clip_qkv")
    fields.must_be("router_jitter_noise", 0, 0.0)  # noise in training only, but a non-zero value is unheard of
    with naming(path):
        config = _common(fields, path, family)
    fields.inert(INERT)
    fields.inert_prefix(*INERT_PREFIXES)
    fields.finish()
    return config


def _common(fields: Fields, path: Path, family: str) -> ModelConfig:
    qkv_bias, qk_norm, read_moe = _FAMILIES[family]
    hidden_size = fields.integer("hidden_size")
    num_heads = fields.integer("num_attention_heads")
    num_layers = fields.integer("num_hidden_layers")
    max_positions = fields.integer("max_position_embeddings")
    if num_heads < 1:
        raise UnsupportedModelError(f"{path}: num_attention_heads = {num_heads} must be at least 1")
    head_dim = fields.integer("head_dim", default=hidden_size // num_heads)
    _refuse_windows(fields, path, max_positions)
    intermediate_size = fields.integer("intermediate_size")
    return ModelConfig(
        architecture=family,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads", default=num_heads),
        head_dim=head_dim,
        intermediate_size=intermediate_size,
        max_position_embeddings=max_positions,
        rms_norm_eps=fields.number("rms_norm_eps", default=1e-6),
        rope=_rope(fields, path, head_dim),
        tie_embeddings=fields.flag("tie_word_embeddings", default=False),
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        moe=read_moe(fields, path, num_layers, intermediate_size) if read_moe else None,
        dtype=fields.text("dtype", "torch_dtype", default="") or None,
    )


def _refuse_windows(fields: Fields, path: Path, max_positions: int) -> None:
    """A sliding window no shorter than the longest sequence, or one that is switched off, changes nothing."""
    window, in_use = fields.get("sliding_window"), fields.flag("use_sliding_window", default=True)
    if window is not None and in_use and not (isinstance(window, int) and window >= max_positions):
        raise UnsupportedModelError(f"{path}: sliding_window = {window} is not supported, only full attention")
    kinds = fields.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)):
        raise UnsupportedModelError(
            f"{path}: layer_types has other layers than 'full_attention', which alone is supported"
        )


def _rope(fields: Fields, path: Path, head_dim: int) -> Rope:
    scaling = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    fields.inert(["rope_parameters", "rope_scaling"])
    if not isinstance(scaling, dict):
        raise CorruptFileError(f"{path}: rope_parameters (or rope_scaling) should be an object")
    rope = Fields(scaling, f"{path}: rope_parameters")
    if "rope_theta" in rope:
        theta = rope.number("rope_theta")
        fields.inert(["rope_theta"])
    else:
        theta = fields.number("rope_theta", default=10000.0)
    kind = rope.text("rope_type", "type", default="default")
    divisors: tuple[float, ...] = ()
    if kind == "llama3":
        divisors = llama3_divisors(
            theta,
            head_dim,
            factor=rope.number("factor"),
            low_freq_factor=rope.number("low_freq_factor"),
            high_freq_factor=rope.number("high_freq_factor"),
            original_length=rope.integer("original_max_position_embeddings"),
        )
    elif kind != "default":
        raise UnsupportedModelError(f"{path}: rope type {kind!r} is not supported, only 'default' and 'llama3'")
    rope.must_be("partial_rotary_factor", 1, 1.0)
    rope.finish()
    return Rope(theta, divisors)


def llama3_divisors(
    theta: float, head_dim: int, *, factor: float, low_freq_factor: float, high_freq_factor: float, original_length: int
) -> tuple[float, ...]:
    """How much slower each RoPE pair turns under Llama 3.1's scaling; one factor per pair, [head_dim / 2].

    Pairs that complete more than `high_freq_factor` turns within `original_length` positions keep their speed, those
    with fewer than `low_freq_factor` are slowed by `factor`, and between the two the speed is interpolated linearly.
    Source: the reference code published with Llama 3.1 (Dubey et al. 2024, "The Llama 3 Herd of Models", section 3.4).

    Raises:
        UnsupportedModelError: factors outside the ranges in which the formula means something.
    """
    if not (theta > 0 and factor > 0 and 0 < low_freq_factor < high_freq_factor and original_length > 0):
        raise UnsupportedModelError(
            f"llama3 RoPE scaling needs factor > 0, 0 < low_freq_factor < high_freq_factor and a positive original "
            f"length, not {factor}, {low_freq_factor}, {high_freq_factor}, {original_length}"
        )
    divisors = []
    for pair in range(head_dim // 2):
        turns = original_length * theta ** (-2 * pair / head_dim) / (2 * math.pi)
        keep = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
        keep = min(1.0, max(0.0, keep))
        divisors.append(1 / ((1 - keep) / factor + keep))
    return tuple(divisors)


def _mixtral(fields: Fields, _path: Path, _num_layers: int, intermediate_size: int) -> MoE:
    return MoE(
        num_experts=fields.integer("num_local_experts"),
        experts_per_token=fields.integer("num_experts_per_tok", default=2),
        intermediate_size=intermediate_size,
        normalize_weights=True,
    )


def _olmoe(fields: Fields, _path: Path, _num_layers: int, intermediate_size: int) -> MoE:
    return MoE(
        num_experts=fields.integer("num_experts"),
        experts_per_token=fields.integer("num_experts_per_tok"),
        intermediate_size=intermediate_size,
        normalize_weights=fields.flag("norm_topk_prob", default=False),
    )


def _qwen3_moe(fields: Fields, path: Path, num_layers: int, _intermediate_size: int) -> MoE:
    step = fields.integer("decoder_sparse_step", default=1)
    listed = fields.get("mlp_only_layers") or []
    if step < 1:
        raise UnsupportedModelError(f"{path}: decoder_sparse_step = {step} must be at least 1")
    if not isinstance(listed, list) or any(type(layer) is not int for layer in listed):
        raise CorruptFileError(f"{path}: mlp_only_layers should be a list of layer numbers")
    dense = {layer for layer in range(min(num_layers, 2**10)) if layer in listed or (layer + 1) % step}
    return MoE(
        num_experts=fields.integer("num_experts", "num_local_experts"),
        experts_per_token=fields.integer("num_experts_per_tok"),
        intermediate_size=fields.integer("moe_intermediate_size"),
        normalize_weights=fields.flag("norm_topk_prob", default=False),
        dense_layers=frozenset(dense),
    )


# family: (bias on Q, K and V; RMSNorm of Q and K; how its experts are written, if it has any)
_FAMILIES: dict[str, tuple[bool, str | None, Callable[[Fields, Path, int, int], MoE] | None]] = {
    "llama": (False, None, None),
    "mistral": (False, None, None),
    "qwen2": (True, None, None),
    "qwen3": (False, "head", None),
    "mixtral": (False, None, _mixtral),
    "olmoe": (False, "row", _olmoe),
    "qwen3_moe": (False, "head", _qwen3_moe),
}
