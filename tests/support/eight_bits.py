"""Tiny checkpoints with weights in 8 bits, as compressed-tensors and the `fp8` method have them. Rounding by ml_dtypes.

Each scheme is a `quantization_config` and what shares a scale; the answer that goes with a checkpoint is a transformers
model with the weights that its codes and scales stand for, computed in float64.
"""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
import transformers as hf
from safetensors.torch import save_file

from support import tiny_models

FP8, INT8 = {"num_bits": 8, "type": "float", "symmetric": True}, {"num_bits": 8, "type": "int", "symmetric": True}
DYNAMIC = {"strategy": "token", "dynamic": True, "observer": None, "observer_kwargs": {}}
STATIC = {"strategy": "tensor", "dynamic": False, "observer": "minmax"}


def compressed(form, weights, inputs, **more):
    """The fields that llm-compressor writes."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
        "global_compression_ratio": 1.5,
    } | more


def blocks(high, wide):
    return {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [high, wide]}


SCHEMES = {
    "fp8-row": compressed("float-quantized", FP8 | {"strategy": "channel", "dynamic": False}, FP8 | DYNAMIC),
    "fp8-tensor": compressed("float-quantized", FP8 | {"strategy": "tensor", "dynamic": False}, FP8 | STATIC),
    "int8-row": compressed("int-quantized", INT8 | {"strategy": "channel", "group_size": None}, INT8 | DYNAMIC),
    "int8-tensor": compressed("naive-quantized", INT8 | {"strategy": "tensor"}, None, sparsity_config={}),
    "fp8-block": blocks(128, 128),
    "compressed-block": compressed(
        "float-quantized", FP8 | {"strategy": "block", "block_structure": [128, 128]}, FP8 | DYNAMIC
    ),
    "fp8-small-block": blocks(48, 20),
    "fp8-plain": {"quant_method": "fp8", "activation_scheme": "static"},
}


def save(family: str, directory: Path, scheme: str, scale_dtype=torch.bfloat16) -> hf.PreTrainedModel:
    """A checkpoint in that scheme, with a tokenizer; returns the model it stands for. lm_head and routers stay."""
    model, config = tiny_models.make(family), SCHEMES[scheme]
    stored, meant = {}, {}
    for name, tensor in tiny_models.hub_state(model).items():
        stored[name] = meant[name] = tensor
        if "proj.weight" not in name and ".experts." not in name:
            continue
        codes, scale, meant[name] = quantise(tensor.double().numpy(), scheme, scale_dtype)
        stored[name] = codes
        suffix = "weight_scale_inv" if "weight_block_size" in config else "weight_scale"
        stored[name.replace("weight", suffix)] = scale
        if "tensor" in scheme or "plain" in scheme:
            stored[name.replace("weight", "input_scale")] = torch.tensor(0.02)
    directory.mkdir(exist_ok=True)
    plain = directory / "plain"
    model.save_pretrained(plain)
    save_file(meant, plain / "model.safetensors", metadata={"format": "pt"})
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    fields = json.loads((plain / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(fields | {"quantization_config": config}))
    tiny_models.save_tokenizer(directory)
    return hf.AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()


def quantise(weight: np.ndarray, scheme: str, scale_dtype: torch.dtype):
    """Codes, scale as it is stored, and what both stand for."""
    largest = 127 if "int8" in scheme else 448
    rows, columns = weight.shape
    if "block" in scheme:
        high, wide = SCHEMES[scheme].get("weight_block_size", [128, 128])
        scale = np.array([
            [np.abs(weight[r : r + high, c : c + wide]).max() for c in range(0, columns, wide)]
            for r in range(0, rows, high)
        ])  # fmt: skip
    elif "row" in scheme:
        scale = np.abs(weight).max(1, keepdims=True)
    else:
        scale = np.abs(weight).max().reshape(1)
    scale = torch.from_numpy(scale / largest).to(scale_dtype)
    wide_scale = scale.double().numpy()
    if "block" in scheme:
        wide_scale = np.repeat(np.repeat(wide_scale, high, 0), wide, 1)[:rows, :columns]
    scaled = np.clip(weight / wide_scale, -largest, largest)
    if largest == 127:
        codes = np.round(scaled).astype(np.int8)
        return torch.from_numpy(codes), scale, torch.from_numpy((codes * wide_scale).astype(np.float32))
    codes = scaled.astype(ml_dtypes.float8_e4m3fn)
    stored = torch.from_numpy(codes.view(np.uint8)).view(torch.float8_e4m3fn)
    return stored, scale, torch.from_numpy((codes.astype(np.float64) * wide_scale).astype(np.float32))
