"""Attention and feed-forward parts on devices of their own (AFD): which operators each side has, and what crosses.

Attention ranks have requests, their KV, all that belongs to attention, the routers, and both ends of the model. Devices
of the other side have the feed-forward parts and nothing of a request: a mixture's experts are shared out among them,
its shared part each has whole, for its share of the tokens; a dense part they split. In every layer a token's row goes
there, once for each of its experts, and comes back (MegaScale-Infer, arXiv 2504.02263, section 3; Step-3, arXiv
2507.19427, section 4). So one side's batch is what all ranks of the other one have together. Where devices of the other
side have little memory (SRAM), there are several groups of them, stages, each for its share of the layers.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

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
        ffn: devices for a layer's feed-forward part, of all of them.
        batches: into so many a rank's requests are split, which take turns: while one is away, others are here.
        redundant: experts that are there twice, so that devices may hold equally many.
        stages: groups of `ffn` devices, among which the layers are shared out. They take turns, too: a layer's time is
            one group's, its weights take room in that group alone.
        shared_stays: a mixture's shared parts are with attention, where each rank has them for its own tokens; else
            each device of a group has them, for its share of all tokens.
    """

    attention: int
    ffn: int
    batches: int = 3
    redundant: int = 0
    stages: int = 1
    shared_stays: bool = False

    def __post_init__(self) -> None:
        for name, least in (("attention", 1), ("ffn", 1), ("batches", 1), ("redundant", 0), ("stages", 1)):
            if getattr(self, name) < least:
                raise InvalidRequestError(
                    f"{name} of an engine in two parts is {getattr(self, name)}: {least} at least"
                )

    @classmethod
    def parse(cls, text: str, shape: Shape, batches: int = 3, *, shared_stays: bool = False) -> "Sides":
        """From "2x6", two ranks of attention and six devices, with as many experts twice as make them all alike.

        "2x6x4": these are 24, six for each layer, in four stages.
        """
        try:
            attention, ffn, *rest = (int(number) for number in text.split("x"))
            (stages,) = rest or [1]
        except ValueError:
            message = f"'{text}' is no pair of numbers such as 2x6: attention, feed-forward; or 2x6x4: in four stages"
            raise InvalidRequestError(message) from None
        experts = shape.experts.count if shape.experts else 0
        return cls(attention, ffn, batches, -experts % ffn if ffn > 0 else 0, stages, shared_stays)

    def __str__(self) -> str:
        return f"{self.attention}A+{self.ffn}F" + (f"x{self.stages}" if self.stages > 1 else "")

    @property
    def ffn_devices(self) -> int:
        """Of all stages."""
        return self.ffn * self.stages

    def held(self, experts: Experts) -> float:
        """Experts of a layer that one device has, copies among them."""
        return (experts.count + self.redundant) / self.ffn

    def parameters(self, shape: Shape) -> float:
        """Weights of one device for the feed-forward parts, in the stage that has most of them."""
        sparse, dense = shape.sparse_layers, shape.layers - shape.sparse_layers
        found = shape.dense_parameters / self.ffn * self._most_layers(dense)
        if shape.experts:
            shared = 0 if self.shared_stays else shape.shared_parameters
            routed = shape.routed_parameters * self.held(shape.experts) / shape.experts.count
            found += (shared + routed) * self._most_layers(sparse)
        return found

    def _most_layers(self, layers: int) -> float:
        """Of layers that are alike, a stage's most, as a share."""
        return math.ceil(layers / self.stages) / layers if layers else 0.0

    def check(self, shape: Shape) -> None:
        """Raise InvalidRequestError, naming the size, where a model cannot be shared out so."""
        if shape.experts:
            if (shape.experts.count + self.redundant) % self.ffn or self.redundant > shape.experts.count:
                count, more = shape.experts.count, self.ffn > shape.experts.count
                least = f"{self.attention}x{count}x{math.ceil(self.ffn_devices / count)}"
                raise InvalidRequestError(
                    f"{count} experts and {self.redundant} copies cannot be shared out among {self.ffn} devices"
                    + (f"; more than {count} can be stages of layers: {least}" if more else "")
                )
        elif self.redundant:
            raise InvalidRequestError(f"{self.redundant} redundant experts: the model has none")
        if shape.layers > shape.sparse_layers and shape.intermediate % self.ffn:
            raise InvalidRequestError(f"intermediate ({shape.intermediate}) cannot be split over {self.ffn} devices")
        if self.stages > shape.layers:
            raise InvalidRequestError(f"{self.stages} stages: the model has {shape.layers} layers")


@dataclass(frozen=True)
class Way:
    """What joins the two sides, where it is not the catalogue that says so.

    Args:
        bandwidth: of each device on either side, in one direction, bytes/s.
        latency_s: of a crossing, besides its bytes: until all rows have come.
    """

    bandwidth: float
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.bandwidth < math.inf:
            raise InvalidRequestError(f"a bandwidth between the two sides of {self.bandwidth} bytes/s")
        if not 0 <= self.latency_s < math.inf:
            raise InvalidRequestError(f"a latency between the two sides of {self.latency_s} s")

    def seconds(self, op: Operator) -> float:
        """Of a crossing, as often as the step does it."""
        return op.times * (op.link_bytes / self.bandwidth + self.latency_s)


def attention_side(
    shape: Shape, prefills: Parts, decodes: Parts, precision: Precision, tensor: int = 1, *, with_shared: bool = False
) -> list[Operator]:
    """All layers' operators on one of the `tensor` devices of a rank, for one of its batches.

    `with_shared`: a mixture's shared parts, too.
    """
    tokens = prefills.tokens + decodes.tokens
    operators = attention_block(shape, precision, prefills, decodes, tensor)
    if shape.experts and shape.sparse_layers:
        operators.append(router(shape, shape.experts, precision, tokens))
        if with_shared:
            operators += shared_expert(shape, shape.experts, precision, tokens, tensor)
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
        if not sides.shared_stays:
            operators += shared_expert(shape, experts, precision, tokens / sides.ffn)
    return operators


def crossings(
    shape: Shape, tokens: float, precision: Precision, sides: Sides, *,
    tensor: int = 1, kind: str = "all_to_all", at: Literal["attention", "ffn", "busier"] = "busier",
) -> list[Operator]:  # fmt: skip
    """There and back, in all layers: of a batch of `tokens` of each rank, what passes one device.

    Rows go in the format that experts compute in, and come back as activations, as with expert parallelism.

    Args:
        kind: `all_to_all`, over links as far as they reach, or `network_all_to_all`.
        at: which side's; `busier`: of the one whose devices have more to pass.
    """
    operators = []
    there = min(precision.activation_bytes, number_format(precision.linear).bytes)
    shares = {"attention": 1 / tensor, "ffn": sides.attention / sides.ffn}
    share = shares.get(at) or max(shares.values())
    crossing = partial(Operator, kind=kind, format="any", peak="none", ranks=sides.attention * tensor + sides.ffn)
    for layers, copies in (
        (shape.layers - shape.sparse_layers, 1),
        (shape.sparse_layers, shape.experts.per_token if shape.experts else 0),
    ):
        if layers:
            row = tokens * copies * share * shape.hidden
            operators += [
                crossing("there", times=layers, link_bytes=row * there, depth=row * there),
                crossing("back", times=layers, link_bytes=row * precision.activation_bytes,
                         depth=row * precision.activation_bytes),
            ]  # fmt: skip
    return operators
