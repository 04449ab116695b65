"""Tiny random models of every supported family, built by transformers and saved as users would find them.

transformers is the independent implementation that ours is compared with; nothing here is imported by miniserve.
"""

import math
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers as hf

_COMMON = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

CONFIGS = {
    "llama": lambda: hf.LlamaConfig(**_COMMON, head_dim=32, tie_word_embeddings=False),
    "llama3-rope": lambda: hf.LlamaConfig(**_COMMON, rope_parameters=dict(_LLAMA3_ROPE)),
    "smollm2": lambda: hf.LlamaConfig(**_COMMON, tie_word_embeddings=True, rms_norm_eps=1e-5),
    "mistral": lambda: hf.MistralConfig(**_COMMON, sliding_window=None),
    "qwen2": lambda: hf.Qwen2Config(**_COMMON, tie_word_embeddings=True),
    "qwen3": lambda: hf.Qwen3Config(**_COMMON, head_dim=32),
    "mixtral": lambda: hf.MixtralConfig(**_COMMON, num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
    "olmoe": lambda: hf.OlmoeConfig(**_COMMON, num_experts=8, num_experts_per_tok=3),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(
        **_COMMON | {"num_attention_heads": 8, "num_key_value_heads": 4},
        head_dim=32,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
        norm_topk_prob=True,
    ),
    "qwen3_moe-mixed": lambda: hf.Qwen3MoeConfig(
        **_COMMON, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, mlp_only_layers=[1]
    ),
}
GGUF_ARCHITECTURES = {
    "llama": "llama",
    "llama3-rope": "llama",
    "smollm2": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "mixtral": "llama",
    "olmoe": "olmoe",
    "qwen3_moe": "qwen3moe",
}


def make(family: str, seed: int = 0) -> hf.PreTrainedModel:
    """A random float32 model. Norms and biases, which start as ones and zeros, are drawn too, so that none is idle."""
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(CONFIGS[family](), dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.5)
            else:
                parameter.normal_(0, 0.08)
    return model


def save(
    family: str, directory: Path, *, shard_bytes: int | None = None, dtype: torch.dtype | None = None
) -> hf.PreTrainedModel:
    """Save a tiny model in Hugging Face layout, with a tokenizer; returns the model that was saved."""
    model = make(family)
    if dtype:
        model = model.to(dtype)
    model.save_pretrained(directory, max_shard_size=shard_bytes or "5GB")
    save_tokenizer(directory)
    return model


def save_tokenizer(directory: Path) -> None:
    """A byte-level tokenizer of 128 entries: enough for ASCII, no merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    printable = [c for c in alphabet if c.isascii()] + ["Ġ", "Ċ"]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {char: 3 + i for i, char in enumerate(printable)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(directory / "tokenizer.json"))


def export_gguf(model: hf.PreTrainedModel, family: str, path: Path, blocks: str | None = None) -> None:
    """Write the model as a float32 GGUF the way llama.cpp's converter does: Q and K rows permuted for llama.

    With `blocks` (Q4_0, Q4_1, Q8_0), matrices are blocks of that type with random elements.
    """
    config, arch = model.config, GGUF_ARCHITECTURES[family]
    rope = config.rope_parameters
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    if experts := getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        if hasattr(config, "moe_intermediate_size"):
            writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(rope, head_dim))
    _add_tokenizer(writer, config.vocab_size)
    for name, tensor in _gguf_tensors(model, arch, config, experts):
        if blocks and tensor.ndim >= 2:
            kind = gguf.GGMLQuantizationType[blocks]
            writer.add_tensor(name, _random_blocks(tensor.shape, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(tensor.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _random_blocks(shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """[..., rows, bytes of a row]: any elements, scales (and minimums) of 0.01 to 0.02."""
    rows, columns = math.prod(shape[:-1]), shape[-1]
    per_block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(rows + columns)
    blocks = rng.integers(0, 256, (rows, columns // per_block, block_bytes), np.uint8)
    blocks[..., 2:][blocks[..., 2:] == 128] = 0  # no -128, which no quantizer makes
    for at in (0, 2) if kind.name == "Q4_1" else (0,):
        halves = rng.uniform(0.01, 0.02, blocks.shape[:2]).astype(np.float16)
        blocks[..., at : at + 2] = halves[..., None].view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def _add_tokenizer(writer: gguf.GGUFWriter, vocab_size: int) -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    pieces = ["<unk>", "<s>", "</s>", *sorted(ByteLevel.alphabet())][:vocab_size]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(pieces)
    writer.add_token_types([3, 3, 3] + [1] * (len(pieces) - 3))
    writer.add_token_merges(["Ġ t"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _llama3_factors(rope: dict, head_dim: int) -> np.ndarray:
    """From transformers' own frequencies, so that our formula is not compared with itself."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = hf.LlamaConfig(**_COMMON, head_dim=head_dim, rope_parameters=dict(rope))
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, head_dim, 2).float() / head_dim)
    return (plain / scaled).numpy()


def _gguf_tensors(model, arch, config, experts):
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, arch.upper()), config.num_hidden_layers)
    stacks: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in hub_state(model).items():
        tensor = tensor.detach().float()
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            tensor = _permute(tensor, heads)
        if experts and ".experts." in name:
            head, tail = name.split(".experts.")
            number, part, _ = tail.split(".")
            part = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}.get(part, part)
            layer = int(head.split(".")[2])
            kind = {"gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps"}[part]
            stacks.setdefault(f"blk.{layer}.{kind}.weight", {})[int(number)] = tensor
            continue
        yield names.get_name(name, try_suffixes=(".weight", ".bias")), tensor
    for name, parts in stacks.items():
        yield name, torch.stack([parts[i] for i in range(experts)])


def hub_state(model: hf.PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights under the names in which they are published, not those of transformers' modules."""
    import tempfile

    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        return load_file(Path(directory) / "model.safetensors")


def _permute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
