"""Decoders that live in SRAM whole: how many chips a model with its KV takes, and how soon a user's token comes.

Chips stand in stages. A stage's `sharing` chips have some of the layers, and these layers' KV of all requests; they
split each layer evenly, which takes two sums over them a layer. One stage more has both ends of the model. Requests are
in as many groups as there are stages, or as there are requests, so that every stage has one to compute for: a token
passes all stages, one after another, and its group goes around again.

Computing is at the roofline, and splits without loss: a lower bound that no chip reaches. What a message between chips
takes besides its bytes is for the caller to assume, as no maker publishes it. Nothing here is fitted to anything.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from miniserve.errors import InvalidRequestError
from miniserve.hardware.cost import Parts
from miniserve.hardware.devices import Accelerator
from miniserve.hardware.formats import number_format
from miniserve.hardware.roofline import Roofline
from miniserve.hardware.shape import Precision, Shape
from miniserve.hardware.step import operators_of, unembedding


class SramDecoder(NamedTuple):
    """What it takes and gives.

    Attributes:
        chips: all of them; `sharing`: those that share a layer; `stages`: of layers.
        weight_bytes, kv_bytes: of the whole model, and of all requests.
        groups: that the requests are in.
        computing_s: of a token on its way through all stages.
        passing_s: bytes of its messages on links; `messages`: how many, one after another.
        latency_s: of each message besides, as assumed.
        waiting_s: for stages that take longer than others, in each round.
        requests: at once.
    """

    chips: int
    sharing: int
    stages: int
    weight_bytes: float
    kv_bytes: float
    groups: int
    computing_s: float
    passing_s: float
    messages: int
    latency_s: float
    waiting_s: float
    requests: int

    @property
    def token_s(self) -> float:
        """From one token of a user to the next."""
        return self.computing_s + self.passing_s + self.messages * self.latency_s + self.waiting_s

    @property
    def tokens_per_s_user(self) -> float:
        """Of each user."""
        return 1 / self.token_s

    @property
    def tokens_per_s(self) -> float:
        """Of all users together."""
        return self.requests / self.token_s


def all_in(format: str) -> Precision:
    """Weights, KV and all arithmetic in one number format, as on a chip that has no other; activations of two bytes."""
    size = number_format(format).bytes
    return Precision(format, format, format, format, size, size, size, max(2.0, size))


def decode_in_sram(
    device: Accelerator, shape: Shape, precision: Precision, *, requests: int = 1, context: int = 0,
    sharing: int | None = None, latency_s: float = 0.0, memory_share: float = 0.9,
) -> SramDecoder:  # fmt: skip
    """Spread a model over as few chips as hold it, if so many share each layer.

    Args:
        device: the chip.
        shape, precision: what is computed, in what; the chip has a peak for each format (`all_in`).
        requests: users at once; `context`: tokens of each, KV of which is kept.
        sharing: chips that share each layer; None: as few as hold one.
        latency_s: assumed, of each message between chips; 0: none, the roofline of links.
        memory_share: of each chip's memory, for weights and KV.

    Raises:
        InvalidRequestError: a layer does not fit so many chips, their links do not join so many, or the chip cannot
            compute in a format.
    """
    if requests < 1 or context < 0 or not 0 < memory_share <= 1 or not 0 <= latency_s < math.inf:
        raise InvalidRequestError(
            f"{requests} requests of {context} tokens in {memory_share:.0%} of the memory, {latency_s} s a message: "
            "there is 1 request at least, and nothing below 0"
        )
    room = memory_share * device.memory_bytes
    kv_bytes = requests * context * shape.kv_elements * precision.kv_bytes
    layers = [weights + kv_bytes / shape.layers for weights in _layers_bytes(shape, precision)]
    ends_bytes = shape.embedding_parameters * (
        precision.unembedding_bytes + (0 if shape.tied else precision.embedding_bytes)
    )
    sharing = math.ceil(max(layers) / room) if sharing is None else sharing
    ends = max(sharing, math.ceil(ends_bytes / room))
    _check(device, max(layers), sharing, ends, room)
    of_layers = _stages(layers, sharing * room)
    groups = min(requests, len(of_layers) + 1)
    stages = list(_times(device, shape, precision, requests / groups, context, of_layers, sharing, ends))
    around_s = sum(stage.busy_s(latency_s) + latency_s for stage in stages)
    slowest_s = max(stage.busy_s(latency_s) for stage in stages)
    return SramDecoder(
        chips=len(of_layers) * sharing + ends, sharing=sharing, stages=len(of_layers),
        weight_bytes=sum(layers) - kv_bytes + ends_bytes, kv_bytes=kv_bytes, groups=groups,
        computing_s=sum(stage.computing_s for stage in stages), passing_s=sum(stage.passing_s for stage in stages),
        messages=sum(stage.messages for stage in stages), latency_s=latency_s,
        waiting_s=max(0.0, groups * slowest_s - around_s), requests=requests,
    )  # fmt: skip


class _Stage(NamedTuple):
    """Of a group's tokens in one stage; the last message goes to the next one."""

    computing_s: float
    passing_s: float
    messages: int

    def busy_s(self, latency_s: float) -> float:
        """Until it can begin with the next group: while the last message is on its way."""
        return self.computing_s + self.passing_s + (self.messages - 1) * latency_s


def _times(
    device: Accelerator, shape: Shape, precision: Precision, requests: float, context: int,
    stages: list[range], sharing: int, ends: int,
) -> Iterator[_Stage]:  # fmt: skip
    """Of a group of requests: in the stages of layers, and where the ends are."""
    row_s = requests * shape.hidden * precision.activation_bytes / device.link_bandwidth
    sums = 2 if sharing > 1 else 0  # of attention's results, and of the feed-forward part's
    summing_s = sums * 2 * (sharing - 1) / sharing * row_s
    dense = shape.layers - shape.sparse_layers
    of_kind = {is_dense: _layer_s(device, shape, precision, requests, context, is_dense) for is_dense in (True, False)}
    for stage in stages:
        computing_s = sum(of_kind[at < dense] for at in stage) / sharing
        yield _Stage(computing_s, row_s + summing_s * len(stage), 1 + sums * len(stage))
    yield _Stage(Roofline(device).seconds(unembedding(shape, precision, requests, 1)) / ends, row_s, 1)


def _check(device: Accelerator, layer_bytes: float, sharing: int, ends: int, room: float) -> None:
    """Raise InvalidRequestError where so many chips cannot share a layer."""
    if sharing * room < layer_bytes:
        raise InvalidRequestError(
            f"a layer with its KV takes {layer_bytes / 1e6:,.0f} MB, and {sharing} chips have "
            f"{sharing * room / 1e6:,.0f}: share it among {math.ceil(layer_bytes / room)}"
        )
    if max(sharing, ends) > device.link_domain:
        raise InvalidRequestError(
            f"{max(sharing, ends)} chips cannot share a layer: the links of a {device.name} join "
            f"{device.link_domain:.0f}"
        )


def _layers_bytes(shape: Shape, precision: Precision) -> Iterator[float]:
    """Weights of each layer; dense ones come first."""
    sparse, dense = shape.sparse_layers, shape.layers - shape.sparse_layers
    attention = shape.attention_parameters / shape.layers
    for _ in range(dense):
        yield (attention + shape.dense_parameters / dense) * precision.weight_bytes
    for _ in range(sparse):
        mixture = shape.routed_parameters + shape.shared_parameters + shape.router_parameters
        yield (attention + mixture / sparse) * precision.weight_bytes


def _stages(layers: list[float], room: float) -> list[range]:
    """Layers, in their order, in as few stages as hold them."""
    begins, left = [0], room
    for at, needed in enumerate(layers):
        if needed > left:
            begins.append(at)
            left = room
        left -= needed
    return [range(begin, end) for begin, end in zip(begins, [*begins[1:], len(layers)], strict=True)]


def _layer_s(
    device: Accelerator, shape: Shape, precision: Precision, requests: float, context: int, dense: bool
) -> float:
    """Of one layer of its kind, for so many requests' next tokens, on one chip as if it held all of it."""
    if shape.experts is None and not dense:
        return 0.0
    one = replace(shape, layers=1, dense_layers=int(dense and shape.experts is not None))
    seen = requests * (context + 1)
    decodes = Parts(requests, requests, seen, seen, context + 1)
    operators = operators_of(one, Parts(), decodes, 0, precision)
    return Roofline(device).step_seconds(op for op in operators if op.name != "embedding")
