"""Which checkpoint tensors make up each parameter of the decoder.

The decoder fuses what is read together (Q, K and V; gate and up; all experts), so one parameter is filled from several
tensors. `weight_plan` writes that down once, for whoever reads, writes, slices or trains a model; `check_plan` holds it
against a checkpoint before anything is allocated or read: every tensor present, of the right shape, and none left over.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from miniserve.errors import TensorError
from miniserve.model.checkpoint import Checkpoint
from miniserve.model.config import ModelConfig

Held = Mapping[int, Sequence[int]]  # the experts that a rank holds of each sparse layer


class Part(NamedTuple):
    """A checkpoint tensor and where it goes: `parameter[expert][start : start + rows]` (no expert: no first index)."""

    name: str
    parameter: str
    shape: tuple[int, ...]
    start: int = 0
    expert: int | None = None


def weight_plan(config: ModelConfig, held: Held | None = None) -> Iterator[Part]:
    """Every tensor the decoder needs, in the decoder's order; of experts, if only some are held, those."""
    hidden = config.hidden_size
    embedding = "unembed.weight" if config.tie_embeddings else "embed"
    yield Part("model.embed_tokens.weight", embedding, (config.vocab_size, hidden))
    for layer in range(config.num_layers):
        theirs, ours = f"model.layers.{layer}.", f"layers.{layer}."
        yield Part(theirs + "input_layernorm.weight", ours + "attention_norm.weight", (hidden,))
        yield from _attention(config, theirs + "self_attn.", ours + "attention.")
        yield Part(theirs + "post_attention_layernorm.weight", ours + "mlp_norm.weight", (hidden,))
        yield from _mlp(config, layer, theirs + "mlp.", ours + "mlp.", held)
    yield Part("model.norm.weight", "norm.weight", (hidden,))
    if not config.tie_embeddings:
        yield Part("lm_head.weight", "unembed.weight", (config.vocab_size, hidden))


def _attention(config: ModelConfig, theirs: str, ours: str) -> Iterator[Part]:
    rows = {"q": config.num_heads * config.head_dim, "k": config.num_kv_heads * config.head_dim}
    rows["v"] = rows["k"]
    start = 0
    for kind, count in rows.items():
        yield Part(f"{theirs}{kind}_proj.weight", ours + "qkv.weight", (count, config.hidden_size), start)
        if config.qkv_bias:
            yield Part(f"{theirs}{kind}_proj.bias", ours + "qkv.bias", (count,), start)
        start += count
    yield Part(theirs + "o_proj.weight", ours + "out.weight", (config.hidden_size, rows["q"]))
    for kind in ("q", "k") if config.qk_norm else ():
        size = config.head_dim if config.qk_norm == "head" else rows[kind]
        yield Part(f"{theirs}{kind}_norm.weight", f"{ours}{kind}_norm.weight", (size,))


def _mlp(config: ModelConfig, layer: int, theirs: str, ours: str, held: Held | None) -> Iterator[Part]:
    moe = config.moe if config.is_sparse(layer) else None
    if moe is None:
        yield from _gated(config.hidden_size, config.intermediate_size, theirs, ours, ".weight", None)
        return
    yield Part(theirs + "gate.weight", ours + "router.weight", (moe.num_experts, config.hidden_size))
    for at, expert in enumerate(range(moe.num_experts) if held is None else held[layer]):
        yield from _gated(config.hidden_size, moe.intermediate_size, f"{theirs}experts.{expert}.", ours, "", at)


def _gated(hidden: int, inner: int, theirs: str, ours: str, suffix: str, expert: int | None) -> Iterator[Part]:
    yield Part(theirs + "gate_proj.weight", f"{ours}gate_up{suffix}", (inner, hidden), 0, expert)
    yield Part(theirs + "up_proj.weight", f"{ours}gate_up{suffix}", (inner, hidden), inner, expert)
    yield Part(theirs + "down_proj.weight", f"{ours}down{suffix}", (hidden, inner), 0, expert)


def check_plan(checkpoint: Checkpoint) -> list[Part]:
    """The plan, after comparing it with what the checkpoint holds. Reads no weights.

    Raises:
        TensorError: a tensor is missing, has another shape, or is one the decoder has no place for.
    """
    plan, unplanned = [], set(checkpoint.shapes)
    for part in weight_plan(checkpoint.config, checkpoint.held):
        found = checkpoint.shapes.get(part.name)
        if found is None:
            raise TensorError(f"{checkpoint.path}: tensor {part.name} {list(part.shape)} is missing")
        if found != part.shape:
            raise TensorError(f"{checkpoint.path}: tensor {part.name} has shape {list(found)}, not {list(part.shape)}")
        unplanned.discard(part.name)
        plan.append(part)
    if unplanned:
        names = ", ".join(sorted(unplanned)[:5])
        raise TensorError(f"{checkpoint.path}: {len(unplanned)} tensors have no place in the decoder: {names}")
    return plan
