"""A model's configuration as the cost model sees it: sizes alone. Torch-free."""

from miniserve.hardware.shape import Experts, Shape
from miniserve.model.config import ModelConfig


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
