"""Read GGUF metadata into a `ModelConfig`.

GGUF keeps a model's sizes under its architecture's name ("llama.block_count"). What `config.json` says outright, GGUF
sometimes leaves to the reader: tied embeddings are a missing `output.weight`, stretched RoPE is a tensor
`rope_freqs.weight`, a Mixtral is a "llama" with experts. Keys of the same architecture that nobody read are refused,
as in `config_hf`; `general.*` and `tokenizer.*` describe other things. Torch-free.
"""

from miniserve.errors import UnsupportedModelError
from miniserve.model.config import LIMITS, ModelConfig, MoE, Rope
from miniserve.model.fields import Fields, naming
from miniserve.model.gguf import GGUFFile

# architecture: (bias on Q, K and V; RMSNorm of Q and K; router weights renormalised over the chosen experts)
_ARCHITECTURES: dict[str, tuple[bool, str | None, bool]] = {
    "llama": (False, None, True),
    "qwen2": (True, None, True),
    "qwen3": (False, "head", True),
    "qwen3moe": (False, "head", True),
    "olmoe": (False, "row", False),
}
_INERT = ("vocab_size", "rope.dimension_count", "attention.key_length", "attention.value_length", "rope.freq_base")


def read_gguf_config(file: GGUFFile) -> ModelConfig:
    """Translate the metadata of `file`.

    Raises:
        CorruptFileError: a key has the wrong type.
        UnsupportedModelError: the model needs something the decoder does not implement; names key and value.
    """
    architecture = Fields(file.metadata, file.path).text("general.architecture")
    if architecture not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise UnsupportedModelError(
            f"{file.path}: general.architecture = {architecture!r} is not supported. Supported in GGUF: {known}"
        )
    prefix = architecture + "."
    own = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    fields = Fields(own, f"{file.path}: {prefix}*")
    fields.must_be("rope.scaling.type", "none")
    fields.must_be("attention.sliding_window", 0)
    hidden_size = fields.integer("embedding_length")
    num_heads = fields.integer("attention.head_count")
    if num_heads < 1:
        raise UnsupportedModelError(f"{file.path}: {prefix}attention.head_count = {num_heads} must be at least 1")
    head_dim = fields.integer("attention.key_length", "rope.dimension_count", default=hidden_size // num_heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        fields.must_be(key, head_dim, hint=f"Heads of {head_dim} must rotate and store all their dimensions.")
    qkv_bias, qk_norm, normalize = _ARCHITECTURES[architecture]
    intermediate_size = fields.integer("feed_forward_length", default=0) or fields.integer("expert_feed_forward_length")
    with naming(file.path):
        config = ModelConfig(
            architecture=architecture,
            vocab_size=_vocab_size(file),
            hidden_size=hidden_size,
            num_layers=fields.integer("block_count"),
            num_heads=num_heads,
            num_kv_heads=fields.integer("attention.head_count_kv", default=num_heads),
            head_dim=head_dim,
            intermediate_size=intermediate_size,
            max_position_embeddings=fields.integer("context_length"),
            # Stored as float32: rounding gives back the decimal the model was trained with (1e-5, not 9.99999975e-6).
            rms_norm_eps=round(fields.number("attention.layer_norm_rms_epsilon"), 9),
            rope=Rope(fields.number("rope.freq_base", default=10000.0), _rope_divisors(file)),
            tie_embeddings="output.weight" not in file.tensors,
            qkv_bias=qkv_bias,
            qk_norm=qk_norm,
            moe=_moe(fields, intermediate_size, normalize),
        )
    fields.inert(_INERT)
    fields.finish()
    return config


def _vocab_size(file: GGUFFile) -> int:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise UnsupportedModelError(f"{file.path}: tensor token_embd.weight is missing: not a language model")
    return embedding.shape[0]


def _rope_divisors(file: GGUFFile) -> tuple[float, ...]:
    tensor = file.tensors.get("rope_freqs.weight")
    if tensor is None:
        return ()
    if len(tensor.shape) != 1 or tensor.shape[0] > LIMITS["head_dim"]:
        raise UnsupportedModelError(f"{file.path}: rope_freqs.weight has shape {list(tensor.shape)}, not one per pair")
    return tuple(file.load("rope_freqs.weight").tolist())


def _moe(fields: Fields, intermediate_size: int, normalize: bool) -> MoE | None:
    num_experts = fields.integer("expert_count", default=0)
    if num_experts == 0:
        return None
    fields.must_be("expert_shared_count", 0)
    return MoE(
        num_experts=num_experts,
        experts_per_token=fields.integer("expert_used_count"),
        intermediate_size=fields.integer("expert_feed_forward_length", default=intermediate_size),
        normalize_weights=normalize,
    )
