"""Which checkpoint tensors make up each parameter of the decoder, and the loading of them.

The decoder fuses what is read together (Q, K and V; gate and up; all experts), so one parameter is filled from several
tensors. `weight_plan` writes that down once; `load_weights` checks the plan against the checkpoint before it allocates
or reads anything: every tensor present, of the right shape, and none left over. Linear layers whose weights are to be
of few bits are packed one by one, as their last tensor comes in: at no time are there two copies of a model.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from miniserve.errors import InvalidRequestError, TensorError
from miniserve.kernels import reference
from miniserve.kernels.cpu.huge_pages import Arena, rounded_up
from miniserve.kernels.expert_stack import ExpertStack
from miniserve.kernels.formats import E4M3, INT8, Format
from miniserve.kernels.groups import Bits, Groups
from miniserve.kernels.linear_weight import LinearWeight
from miniserve.kernels.operators import Operators
from miniserve.kernels.scaled_gemm import Rows, quantise_rows
from miniserve.model.checkpoint import Checkpoint
from miniserve.model.communicator import ALONE, Communicator
from miniserve.model.config import ModelConfig
from miniserve.model.decoder import Decoder
from miniserve.model.expert_plan import ExpertPlan
from miniserve.model.layers import Linear
from miniserve.model.mixture import STACKS, SparseMLP
from miniserve.model.sides import Side, give_memory, is_of

Form = Bits | Format  # groups of so many bits, or rows of a format
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


@torch.no_grad()
def load_weights(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype,
    device: torch.device,
    ops: Operators = reference,
    compute_dtype: torch.dtype | None = None,
    quantization: str = "none",
    rows: bool = False,
    communicator: Communicator = ALONE,
    experts: ExpertPlan | None = None,
    side: Side | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Decoder:
    """A decoder with the checkpoint's weights, converted one tensor at a time.

    Args:
        checkpoint: where the weights are.
        dtype, device, ops, compute_dtype: of the decoder.
        quantization: of linear layers and experts: "none", "int8", "int4", "fp8" or "file" (see `choices.choose`).
            Embedding, norms and routers stay in `dtype`.
        rows: whether "int8" means rows with a scale, as a GPU reads them, and not groups.
        communicator, experts: of the decoder, if the checkpoint is one rank's slice.
        side: of which the weights are wanted alone; see `sides`.
        progress: called with (tensors done, tensors in all) after each tensor.

    Raises:
        TensorError: see `check_plan`.
        InvalidRequestError: a layer cannot be packed. Names it.
    """
    plan, wanted = check_plan(checkpoint), is_of(side) if side else None
    decoder = Decoder(
        checkpoint.config,
        dtype=dtype,
        device=torch.device("meta") if wanted else device,
        ops=ops,
        compute_dtype=compute_dtype,
        communicator=communicator,
        experts=experts,
    )
    if wanted:
        plan = [part for part in plan if wanted(part.parameter)]
        give_memory(decoder, wanted, device)
    targets: dict[str, Tensor] = dict(decoder.named_parameters())
    packed = packed_forms(checkpoint, decoder, plan, quantization, rows=rows)
    awaited = Counter(part.parameter for part in plan)
    parts: defaultdict[str, list[Groups | Rows]] = defaultdict(list)  # of matrices of which tensors are still to come
    for done, part in enumerate(plan, start=1):
        form = packed.get(part.parameter)
        awaited[part.parameter] -= 1
        if form:
            parts[part.parameter].append(_rounded(checkpoint, part.name, form, device, keep=quantization == "file"))
            if not awaited[part.parameter]:
                _pack(decoder, part.parameter, parts.pop(part.parameter))
        else:
            target = targets[part.parameter]
            if part.expert is not None:
                target = target[part.expert]
            target[part.start : part.start + part.shape[0]].copy_(checkpoint.load(part.name))
        if progress:
            progress(done, len(plan))
    return decoder.requires_grad_(False).eval()


def packed_forms(
    checkpoint: Checkpoint, decoder: Decoder, plan: list[Part], quantization: str, *, rows: bool = False
) -> dict[str, Form]:
    """Which weights of linear layers and experts are to be of few bits, and in what form.

    The unembedding, which tokens are told apart by, has 8 bits even with "int4" and stays as it is in rows. With
    "file", only what stays exactly what it is in the file: a matrix that is fused from tensors of several types,
    without whole blocks, or in rows of 8 bits that are also looked up as an embedding, is expanded.
    """
    if quantization == "none":
        return {}
    sources: dict[str, list[str]] = {}
    for part in plan:
        sources.setdefault(part.parameter, []).append(part.name)
    found: dict[str, Form] = {}
    for name, shape in _matrices(decoder):
        module_name = name.removesuffix(".weight")
        if name not in sources:
            continue
        if quantization == "fp8" or (quantization == "int8" and rows):
            if module_name != "unembed":
                found[name] = E4M3 if quantization == "fp8" else INT8
            continue
        if quantization != "file":
            found[name] = 8 if quantization == "int8" or module_name == "unembed" else 4
            continue
        formats = {checkpoint.row_format(source) for source in sources[name]}
        if (row_format := formats.pop()) and not formats:
            if module_name != "unembed" or decoder.embed is not None:
                found[name] = row_format
            continue
        stored = {checkpoint.bits(source) for source in sources[name]}
        bits = stored.pop()
        if bits and not stored and LinearWeight.can_pack(shape, bits):
            found[name] = bits
    return found


def _matrices(decoder: Decoder) -> Iterator[tuple[str, tuple[int, int]]]:
    """The parameters that may have few bits, and the shape of one matrix [N, K] of each."""
    for name, module in decoder.named_modules():
        if isinstance(module, Linear) and not name.endswith(".router"):
            yield f"{name}.weight", (module.weight.shape[0], module.weight.shape[1])
        elif isinstance(module, SparseMLP):
            for stack in STACKS:
                _, rows, columns = getattr(module, stack).shape
                yield f"{name}.{stack}", (rows, columns)


def move_to_huge_pages(decoder: Decoder) -> None:
    """Put all weights of linear layers and experts into one region of huge pages, in the order that a token reads."""
    holders = [module for module in decoder.modules() if isinstance(module, Linear | SparseMLP)]
    holders = [holder for holder in holders if not any(tensor.is_meta for tensor in _tensors(holder))]
    arena = Arena(sum(rounded_up(tensor) for holder in holders for tensor in _tensors(holder)))

    def moved(matrix: LinearWeight) -> LinearWeight:
        scales = None if matrix.scales is None else arena.copy(matrix.scales)
        return LinearWeight(arena.copy(matrix.data), scales, matrix.bias)

    for holder in holders:
        if isinstance(holder, Linear):
            holder.pack(moved(holder.matrix))
            continue
        for name, stack in zip(STACKS, holder.stacks, strict=True):
            holder.pack(name, ExpertStack(moved(stack.matrix), stack.num_experts))


def _tensors(holder: Linear | SparseMLP) -> list[Tensor]:
    matrices = [holder.matrix] if isinstance(holder, Linear) else [stack.matrix for stack in holder.stacks]
    return [part for matrix in matrices for part in (matrix.data, matrix.scales) if part is not None]


def _rounded(checkpoint: Checkpoint, name: str, form: Form, device: torch.device, *, keep: bool) -> Groups | Rows:
    """A tensor in few bits: the file's own groups or rows, or rounded from its values."""
    try:
        if isinstance(form, Format):
            if checkpoint.row_format(name) is form:
                data, scales = checkpoint.rows(name)
                return Rows(data.to(device), scales.to(device))
            return quantise_rows(checkpoint.load(name).to(device).float(), form)
        return checkpoint.groups(name) if keep else Groups.rounding(checkpoint.load(name), form)
    except ValueError as error:
        what = form.name if isinstance(form, Format) else f"{form} bits"
        raise InvalidRequestError(f"{name} cannot be rounded to {what}: {error}") from error


def _pack(decoder: Decoder, parameter: str, parts: list[Groups | Rows]) -> None:
    """Put the rows of several tensors, all of one form, in the place of a linear layer's weight, or of a stack."""
    name = parameter.removesuffix(".weight")
    owner, _, last = name.rpartition(".")
    holder = decoder.get_submodule(owner if last in STACKS and not parameter.endswith(".weight") else name)
    groups = [part for part in parts if isinstance(part, Groups)]
    try:
        if groups:
            matrix = LinearWeight.packed(Groups.stacked(groups))
        else:
            rows = [part for part in parts if isinstance(part, Rows)]
            matrix = LinearWeight(*(torch.cat(each) for each in zip(*rows, strict=True)))
        if isinstance(holder, SparseMLP):
            holder.pack(last, ExpertStack(matrix, len(holder.gate_up if last == "gate_up" else holder.down)))
        else:
            assert isinstance(holder, Linear)
            holder.pack(replace(matrix, bias=holder.bias))
    except ValueError as error:
        raise InvalidRequestError(f"the weight of {name} cannot have {groups[0].bits} bits: {error}") from error
