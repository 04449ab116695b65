"""Write a decoder as a Hugging Face checkpoint: `config.json` and `model.safetensors`, which others can load.

The inverse of `config_hf` and `weights.load_weights`, from the same plan. Families that the trainer makes: Llama,
Qwen3, Qwen3-MoE. Packed weights cannot be written: they would be another model's.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from miniserve.errors import InvalidRequestError
from miniserve.model.config import ModelConfig
from miniserve.model.decoder import Decoder
from miniserve.model.weight_plan import weight_plan

CLASSES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}


def hf_config(config: ModelConfig, dtype: torch.dtype, **token_ids: int) -> dict[str, Any]:
    """`config.json`'s fields; `token_ids`: `bos_token_id` and `eos_token_id`.

    Raises:
        InvalidRequestError: the family is none of those above, or RoPE is scaled.
    """
    if config.architecture not in CLASSES:
        raise InvalidRequestError(f"a {config.architecture} cannot be written, only {', '.join(CLASSES)}")
    if config.rope.divisors:
        raise InvalidRequestError("a model with scaled RoPE cannot be written: the factors' origin is not kept")
    fields: dict[str, Any] = {
        "architectures": [CLASSES[config.architecture]],
        "model_type": config.architecture,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope.theta,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    if config.moe:
        fields |= {
            "num_experts": config.moe.num_experts,
            "num_experts_per_tok": config.moe.experts_per_token,
            "moe_intermediate_size": config.moe.intermediate_size,
            "norm_topk_prob": config.moe.normalize_weights,
            "mlp_only_layers": sorted(config.moe.dense_layers),
            "decoder_sparse_step": 1,
        }
    return fields | token_ids


def hf_tensors(decoder: Decoder, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor of the checkpoint by its name, on the CPU.

    Raises:
        InvalidRequestError: a weight is packed. Names it.
    """
    parameters, found = dict(decoder.named_parameters()), {}
    for part in weight_plan(decoder.config):
        whole = parameters[part.parameter].detach()
        if not whole.numel():
            raise InvalidRequestError(f"{part.parameter} is packed: a model of fewer bits cannot be written")
        one = whole if part.expert is None else whole[part.expert]
        rows = one[part.start : part.start + part.shape[0]]
        found[part.name] = rows.to("cpu", dtype, copy=True).contiguous()
    return found


def save_weights(decoder: Decoder, path: Path, dtype: torch.dtype) -> None:
    """Write the tensors to a file. Raises InvalidRequestError, see `hf_tensors`."""
    save_file(hf_tensors(decoder, dtype), path, metadata={"format": "pt"})
