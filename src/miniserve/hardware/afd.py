"""Attention and feed-forward parts on devices of their own (AFD): which operators each side has, and what crosses.

Attention ranks have requests, their KV, all that belongs to attention, the routers, and both ends of the model. Devices
of the other side have the feed-forward parts and nothing of a request: a mixture's experts are shared out among them,
its shared part each has whole, for its share of the tokens; a dense part they split. In every layer a token's row goes
there, once for each of its experts, and comes back (MegaScale-Infer, arXiv 2504.02263, section 3; Step-3, arXiv
2507.19427, section 4). So one side's batch is what all ranks of the other one have together.
"""

from dataclasses import dataclass
from functools import partial

from miniserve.errors import InvalidRequestError
from miniserve.hardware.cost import Operator, Parts, collective, expected_experts, moe
from miniserve.hardware.formats import number_format
from miniserve.hardware.shape import Experts, Precision, Shape
from miniserve.hardware.step import (
    attention_block,
    dense_block,
    elementwise,
    embedding,
    router,
    shared_expert,
    unembedding,
)


@dataclass(frozen=True)
class Sides:
    """How an engine is taken apart.

    Args:
        attention: ranks that have requests.
        ffn: devices for the feed-forward parts of all of them.
        batches: into so many a rank's requests are split, which take turns: while one is away, others are here.
        redundant: experts that are there twice, so that devices may hold equally many.
    """

    attention: int
    ffn: int
    batches: int = 3
    redundant: int = 0

    def __post_init__(self) -> None:
        for name, least in (("attention", 1), ("ffn", 1), ("batches", 1), ("redundant", 0)):
            if getattr(self, name) < least:
                raise InvalidRequestError(
                    f"{name} of an engine in two parts is {getattr(self, name)}: {least} at least"
                )

    @classmethod
    def parse(cls, text: str, shape: Shape, batches: int = 3) -> "Sides":
        """From "2x6", two ranks of attention and six devices, with as many experts twice as make them all alike."""
        try:
            attention, ffn = (int(number) for number in text.split("x"))
        except ValueError:
            raise InvalidRequestError(f"'{text}' is no pair of numbers such as 2x6: attention, feed-forward") from None
        experts = shape.experts.count if shape.experts else 0
        return cls(attention, ffn, batches, -experts % ffn if ffn > 0 else 0)

    def __str__(self) -> str:
        return f"{self.attention}A+{self.ffn}F"

    def held(self, experts: Experts) -> float:
        """Experts of a layer that one device has, copies among them."""
        return (experts.count + self.redundant) / self.ffn

    def check(self, shape: Shape) -> None:
        """Raise InvalidRequestError, naming the size, where a model cannot be shared out so."""
        if shape.experts:
            if (shape.experts.count + self.redundant) % self.ffn or self.redundant > shape.experts.count:
                raise InvalidRequestError(
                    f"{shape.experts.count} experts and {self.redundant} copies cannot be shared out among {self.ffn} "
                    "devices"
                )
        elif self.redundant:
            raise InvalidRequestError(f"{self.redundant} redundant experts: the model has none")
        if shape.layers > shape.sparse_layers and shape.intermediate % self.ffn:
            raise InvalidRequestError(f"intermediate ({shape.intermediate}) cannot be split over {self.ffn} devices")


def attention_side(
    shape: Shape, prefills: Parts, decodes: Parts, precision: Precision, tensor: int = 1
) -> list[Operator]:
    """All layers' operators on one of the `tensor` devices of a rank, for one of its batches."""
    tokens = prefills.tokens + decodes.tokens
    operators = attention_block(shape, precision, prefills, decodes, tensor)
    if shape.experts and shape.sparse_layers:
        operators.append(router(shape, shape.experts, precision, tokens))
    operators.append(elementwise(shape, precision, tokens, tensor, with_gate=False))
    if tensor > 1:
        message = tokens * shape.hidden * precision.activation_bytes
        operators.append(collective("all_reduce", message, tensor, times=shape.layers))
    return operators


def both_ends(shape: Shape, tokens: float, samples: float, precision: Precision, tensor: int = 1) -> list[Operator]:
    """What a rank does before the first layer and behind the last, for all its batches at once."""
    operators = [embedding(shape, precision, tokens)]
    if samples:
        operators.append(unembedding(shape, precision, samples, tensor))
        if tensor > 1:
            operators.append(collective("all_gather", samples * shape.vocab * precision.activation_bytes, tensor))
    return operators


def feed_forward_side(shape: Shape, tokens: float, precision: Precision, sides: Sides) -> list[Operator]:
    """All layers' operators on one device, for a batch of so many tokens, of all ranks together."""
    operators = []
    if dense := dense_block(shape, precision, tokens, sides.ffn):
        layers, width = dense[0].times, shape.intermediate / sides.ffn
        gate = Operator("gate", "elementwise", "any", "none", layers,
                        activation_bytes=3 * tokens * width * precision.activation_bytes)  # fmt: skip
        operators += [dense[0], gate, dense[1]]
        if sides.ffn > 1:  # rows come to one device, all need them, and their results are added up: a reduction's bytes
            message = tokens * shape.hidden * precision.activation_bytes
            operators.append(collective("all_reduce", message, sides.ffn, name="gather and add", times=layers))
    if shape.experts and shape.sparse_layers:
        experts, layers = shape.experts, shape.sparse_layers
        held = sides.held(experts)
        met = held * expected_experts(experts, tokens) / experts.count
        arrivals = tokens * experts.per_token / sides.ffn
        operators.append(moe(precision, shape.hidden, experts, arrivals, held=held, met=met, times=layers))
        operators += shared_expert(shape, experts, precision, tokens / sides.ffn)
    return operators


def crossings(
    shape: Shape, tokens: float, precision: Precision, sides: Sides, *, tensor: int = 1, kind: str = "all_to_all"
) -> list[Operator]:
    """There and back, in all layers: of a batch of `tokens` of each rank, at the side whose devices have more to pass.

    Rows go in the format that experts compute in, and come back as activations, as with expert parallelism.

    Args:
        kind: `all_to_all`, over links as far as they reach, or `network_all_to_all`.
    """
    operators = []
    there = min(precision.activation_bytes, number_format(precision.linear).bytes)
    busier = max(1 / tensor, sides.attention / sides.ffn)
    crossing = partial(Operator, kind=kind, format="any", peak="none", ranks=sides.attention * tensor + sides.ffn)
    for layers, copies in (
        (shape.layers - shape.sparse_layers, 1),
        (shape.sparse_layers, shape.experts.per_token if shape.experts else 0),
    ):
        if layers:
            row = tokens * copies * busier * shape.hidden
            operators += [
                crossing("there", times=layers, link_bytes=row * there, depth=row * there),
                crossing("back", times=layers, link_bytes=row * precision.activation_bytes,
                         depth=row * precision.activation_bytes),
            ]  # fmt: skip
    return operators
