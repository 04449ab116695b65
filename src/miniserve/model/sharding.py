"""Which slice of a model each rank of a tensor-parallel one holds, and a checkpoint that gives no more than that.

Heads and the width of feed-forward layers are shared out evenly. Q, K, V, gate and up are split by rows, so that a rank
has whole heads and whole columns of the feed-forward layer; the output and down projections by columns, so that what
they give are parts of a sum, one after attention and one after the feed-forward layer. Of a mixture each rank holds
such a slice of every expert, or, by an `ExpertPlan`, some of the experts whole. Embedding, unembedding, norms and
routers are whole on each: only rank 0 needs logits, and the others, which see no requests, would have to be told for
which rows.
Source: Shoeybi et al. 2019, "Megatron-LM", section 3.

A slice of a model has the shape of a smaller model. So its config is a `ModelConfig`, and its plan of weights, its
decoder and its KV cache are those of that config; what of a tensor belongs to it follows from comparing the two plans.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from miniserve.errors import InvalidRequestError
from miniserve.kernels.formats import Format
from miniserve.kernels.groups import GROUP, Bits, Groups
from miniserve.kernels.scaled_gemm import Rows
from miniserve.model.checkpoint import Checkpoint
from miniserve.model.config import ModelConfig
from miniserve.model.expert_plan import ExpertPlan
from miniserve.model.sides import Side
from miniserve.model.tokenizer.tokenizer import Tokenizer
from miniserve.model.weight_plan import check_plan, weight_plan


def sharded_config(
    config: ModelConfig, size: int, *, whole_experts: bool = False, side: Side | None = None
) -> ModelConfig:
    """The shape of what one of `size` ranks holds, a slice of every expert or `whole_experts`.

    With a `side`, its ranks are as many, and nothing else is sliced.

    Raises:
        InvalidRequestError: the model cannot be shared out evenly among so many. Names what cannot, and the numbers.
    """
    what = f"afd: {size} ranks of {side}" if side else f"tensor_parallel_size is {size}"
    if size < 1:
        raise InvalidRequestError(f"{what}: it must be at least 1")
    attention, feed_forward = (1 if side not in (None, each) else size for each in ("attention", "feed-forward"))
    sizes = {"num_kv_heads": (config.num_kv_heads, attention), "num_heads": (config.num_heads, attention)}
    if any(not config.is_sparse(layer) for layer in range(config.num_layers)):
        sizes["intermediate_size"] = config.intermediate_size, feed_forward
    if config.moe and not whole_experts:
        sizes["an expert's intermediate_size"] = config.moe.intermediate_size, feed_forward
    for name, (value, among) in sizes.items():
        if value % among:
            raise InvalidRequestError(f"{what}: it must divide {name}, which is {value} in this model")
    moe = config.moe
    if moe and not whole_experts:
        moe = replace(moe, intermediate_size=moe.intermediate_size // feed_forward)
    return replace(
        config,
        num_heads=config.num_heads // attention,
        num_kv_heads=config.num_kv_heads // attention,
        intermediate_size=max(1, config.intermediate_size // feed_forward),
        moe=moe,
    )


class _Cut(NamedTuple):
    """Elements [start, start + length) of one dimension."""

    dim: int
    start: int
    length: int


class ShardedCheckpoint(Checkpoint):
    """One rank's slice of a checkpoint, itself a checkpoint: of a smaller model, with the same names.

    Args:
        whole: where it is cut from.
        rank, size: which of how many.
        experts: which rank holds which, if they are shared out whole.
        side: of which these are the ranks, if feed-forward parts have ranks of their own.

    Raises:
        InvalidRequestError: see `sharded_config`.
        TensorError: the whole is not what its config says; see `check_plan`.
    """

    def __init__(
        self,
        whole: Checkpoint,
        rank: int,
        size: int,
        experts: ExpertPlan | None = None,
        side: Side | None = None,
    ) -> None:
        self.path, self.stored, self._whole = whole.path, whole.stored, whole
        self.config = sharded_config(whole.config, size, whole_experts=experts is not None, side=side)
        self.held = experts.held(rank) if experts else None
        check_plan(whole)
        self.shapes = {}
        self._cuts: dict[str, _Cut | None] = {}
        plans = weight_plan(self.config, self.held), weight_plan(whole.config, self.held)
        for mine, full in zip(*plans, strict=True):
            self.shapes[mine.name] = mine.shape
            split = [dim for dim, (part, all_) in enumerate(zip(mine.shape, full.shape, strict=True)) if part != all_]
            assert len(split) <= 1, "a tensor is cut in one dimension"
            self._cuts[mine.name] = _Cut(split[0], rank * mine.shape[split[0]], mine.shape[split[0]]) if split else None

    def load(self, name: str) -> Tensor:
        """This rank's slice of one tensor. Files are mapped, so of floats no more than the slice is read."""
        tensor, cut = self._whole.load(name), self._cuts[name]
        return tensor if cut is None else tensor.narrow(*cut)

    def bits(self, name: str) -> Bits | None:
        """As the whole says; none if the cut goes through a group."""
        cut = self._cuts[name]
        through = cut is not None and cut.dim == 1 and cut.length % GROUP
        return None if through else self._whole.bits(name)

    def groups(self, name: str) -> Groups:
        """This rank's slice of one matrix, bit by bit as it is stored."""
        groups, cut = self._whole.groups(name), self._cuts[name]
        if cut is None:
            return groups
        if cut.dim == 0:
            return groups.take(torch.arange(cut.start, cut.start + cut.length))
        first, count = cut.start // GROUP, cut.length // GROUP
        minimum = None if groups.minimum is None else groups.minimum.narrow(1, first, count)
        return Groups(groups.q.narrow(1, cut.start, cut.length), groups.scale.narrow(1, first, count), minimum)

    def row_format(self, name: str) -> Format | None:
        """As the whole says."""
        return self._whole.row_format(name)

    def rows(self, name: str) -> Rows:
        """This rank's slice of one matrix, bit by bit as it is stored; part of a row has the scale of the whole row."""
        rows, cut = self._whole.rows(name), self._cuts[name]
        if cut is None:
            return rows
        return Rows(rows.data.narrow(*cut), rows.scales.narrow(*cut) if cut.dim == 0 else rows.scales)

    def tokenizer(self) -> Tokenizer:
        """The whole's."""
        return self._whole.tokenizer()
