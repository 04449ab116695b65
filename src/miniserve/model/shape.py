"""A model's configuration as the cost model sees it: sizes alone. Torch-free."""

from pathlib import Path

from miniserve.hardware.shape import Experts, Latent, Shape
from miniserve.model.config import ModelConfig
from miniserve.model.config_hf import read_hf_config
from miniserve.model.fields import Fields, read_json

#: Whose sizes are known and whose decoder is not: latent attention.
LATENT_FAMILIES = frozenset({"deepseek_v2", "deepseek_v3"})


def shape_of(config: ModelConfig) -> Shape:
    """The sizes that a step's cost depends on."""
    moe = config.moe
    return Shape(
        layers=config.num_layers,
        hidden=config.hidden_size,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        intermediate=config.intermediate_size,
        vocab=config.vocab_size,
        tied=config.tie_embeddings,
        experts=Experts(moe.num_experts, moe.experts_per_token, moe.intermediate_size) if moe else None,
        dense_layers=len(moe.dense_layers) if moe else 0,
    )


def read_shape(path: Path) -> Shape:
    """The sizes in the `config.json` at `path`: of a family that the decoder knows, or of DeepSeek's.

    Of the latter, fields that are no size are left unread. Raises as `read_hf_config`; InvalidRequestError for sizes
    that contradict one another.
    """
    fields = Fields(read_json(path), path)
    if fields.text("model_type") not in LATENT_FAMILIES:
        return shape_of(read_hf_config(path))
    fields.must_be("moe_layer_freq", 1)
    heads, expert = fields.integer("num_attention_heads"), fields.integer("moe_intermediate_size")
    latent = Latent(
        query_rank=fields.integer("q_lora_rank", default=0),
        kv_rank=fields.integer("kv_lora_rank"),
        rotary=fields.integer("qk_rope_head_dim"),
        plain=fields.integer("qk_nope_head_dim"),
        value=fields.integer("v_head_dim"),
    )
    return Shape(
        layers=fields.integer("num_hidden_layers"),
        hidden=fields.integer("hidden_size"),
        heads=heads,
        kv_heads=heads,
        head_dim=latent.plain + latent.rotary,
        intermediate=fields.integer("intermediate_size"),
        vocab=fields.integer("vocab_size"),
        tied=fields.flag("tie_word_embeddings", default=False),
        experts=Experts(
            fields.integer("n_routed_experts"), fields.integer("num_experts_per_tok"), expert,
            shared=expert * fields.integer("n_shared_experts", default=0),
        ),
        dense_layers=fields.integer("first_k_dense_replace", default=0),
        latent=latent,
    )  # fmt: skip
