"""`PingPong`: how long a step takes with attention and feed-forward parts on devices of their own.

A rank's requests are split into batches that take turns: while the devices of one side compute for one, another is on
its way or on the other side. In a layer each batch is computed here, travels, is computed there, and travels back; a
layer's cycle is the longest of three: all batches' time here, all batches' time there, and one batch's way around
(MegaScale-Infer, arXiv 2504.02263, section 4.1). The last layer ends when the last batch is back. All ranks do the same
at the same time. Layers that differ count by their mean.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from miniserve.hardware.afd import Sides, Way, attention_side, both_ends, crossings, feed_forward_side
from miniserve.hardware.cost import Operator, Part, Parts
from miniserve.hardware.roofline import Roofline
from miniserve.hardware.shape import Precision, Shape
from miniserve.hardware.step import decode_attention
from miniserve.simulate.step_time import StepTime, busiest, takes_arrays


class Turn(NamedTuple):
    """Seconds of one batch in all layers: on attention's devices, on the others, and between them."""

    here_s: Any
    there_s: float
    away_s: float

    @property
    def around_s(self) -> Any:
        """One after the other."""
        return self.here_s + self.there_s + self.away_s


class PingPong(StepTime):
    """Of one attention rank, and its share of the devices on the other side.

    Args:
        shape, precision: what is computed, in what.
        tensor: devices of a rank, which share each layer's attention.
        sides: how the engine is taken apart.
        here, there: attention's devices, and the others.
        joined: whether links join the two, as far as those reach; else rows cross the network.
        way: what joins them instead; None: what devices have.
        overhead_s: see `StepTime`.
        imbalance: the busiest device's share of a mixture's tokens, as a multiple of the mean.
    """

    def __init__(
        self,
        shape: Shape,
        precision: Precision,
        sides: Sides,
        here: Roofline,
        there: Roofline,
        *,
        tensor: int = 1,
        joined: bool = True,
        way: Way | None = None,
        overhead_s: float = 0.0,
        imbalance: float = 1.0,
    ) -> None:
        sides.check(shape)
        self.shape, self.precision, self.sides, self.tensor = shape, precision, sides, tensor
        self.here, self.there, self.joined, self.way, self.imbalance = here, there, joined, way, imbalance
        self._but_attention: dict[float, Turn] = {}
        super().__init__(overhead_s, takes_arrays(shape, here))

    def work(self, parts: Sequence[Part]) -> Iterator[tuple[Operator, float]]:
        """Of `StepTime`. Rows that cross take nobody's time."""
        batches = self._batches(parts)
        share = self.sides.ffn / self.sides.attention
        for here, there in map(self._computing, batches):
            yield from ((op, self.here.seconds(op) * self.tensor) for op in here)
            yield from ((op, self.there.seconds(op) * share) for op in there)
        yield from ((op, self.here.seconds(op) * self.tensor) for op in self._ends(parts))

    def turns(self, parts: Sequence[Part]) -> list[Turn]:
        """What each batch of a step takes, in all layers."""
        return [self._turn(*self._computing(batch), _tokens(batch)) for batch in self._batches(parts)]

    def _step_s(self, parts: Sequence[Part]) -> float:
        turns = self.turns(parts)
        longest_s = max(turn.around_s for turn in turns)
        here_s, there_s = sum(turn.here_s for turn in turns), sum(turn.there_s for turn in turns)
        ends_s = self.here.step_seconds(self._ends(parts))
        return float(self.overhead_s + ends_s + self._in_turn_s(len(turns), here_s, there_s, longest_s))

    def _decode_s(self, requests: int, cached: Any, longest: Any) -> Any:
        number = min(requests, self.sides.batches)
        each = requests / number
        rest = self._but_attention.get(each)
        if rest is None:
            parts = Parts(each, each, 1, 1, 1)  # contexts are attention's alone
            others = self._this_side(Parts(), parts)
            here = [op for op in others if op.name != "decode attention"]
            rest = self._but_attention[each] = self._turn(here, self._other_side(each), each)
        seen = (cached + requests) / number
        attention = decode_attention(
            self.shape, self.precision, Parts(each, each, seen, seen, longest + 1), self.tensor
        )
        turn = rest._replace(here_s=rest.here_s + self.here.seconds(attention))
        ends_s = self.here.step_seconds(both_ends(self.shape, requests, requests, self.precision, self.tensor))
        in_turn_s = self._in_turn_s(number, number * turn.here_s, number * turn.there_s, turn.around_s)
        return self.overhead_s + ends_s + in_turn_s

    def _in_turn_s(self, number: int, here_s: Any, there_s: Any, longest_s: Any) -> Any:
        """Of all layers and so many batches: what these take here and there, all together, and the longest way."""
        layers, busier_s = self.shape.layers, np.maximum(here_s, there_s)
        cycles_s = np.maximum(busier_s, longest_s) * (1 - 1 / layers)
        return cycles_s + (longest_s + busier_s * (1 - 1 / number)) / layers

    def _batches(self, parts: Sequence[Part]) -> list[Sequence[Part]]:
        number = min(len(parts), self.sides.batches)
        return [parts[at::number] for at in range(number)]

    def _computing(self, batch: Sequence[Part]) -> tuple[list[Operator], list[Operator]]:
        """A batch's operators on either side."""
        decodes = Parts.of(part for part in batch if part.is_decode)
        prefills = Parts.of(part for part in batch if not part.is_decode)
        return self._this_side(prefills, decodes), self._other_side(_tokens(batch))

    def _this_side(self, prefills: Parts, decodes: Parts) -> list[Operator]:
        return attention_side(
            self.shape, prefills, decodes, self.precision, self.tensor, with_shared=self.sides.shared_stays
        )

    def _other_side(self, tokens: float) -> list[Operator]:
        operators = feed_forward_side(self.shape, tokens * self.sides.attention, self.precision, self.sides)
        return [busiest(op, self.imbalance) for op in operators]

    def _turn(self, here: Iterable[Operator], there: Iterable[Operator], tokens: float) -> Turn:
        return Turn(self.here.step_seconds(here), self.there.step_seconds(there), self._away_s(tokens))

    def _away_s(self, tokens: float) -> float:
        """Of one batch in all layers: as long as the slower side needs to pass its rows."""
        passing = partial(crossings, self.shape, tokens, self.precision, self.sides, tensor=self.tensor)
        if self.way:
            return sum(self.way.seconds(busiest(op, self.imbalance)) for op in passing())
        if self.joined:
            pairs = [(op, op) for op in passing()]
        else:
            network = partial(passing, kind="network_all_to_all")
            pairs = list(zip(network(at="attention"), network(at="ffn"), strict=True))
        return sum(
            max(
                side.seconds(busiest(op, self.imbalance))
                for side, op in zip((self.here, self.there), pair, strict=True)
            )
            for pair in pairs
        )

    def _ends(self, parts: Sequence[Part]) -> list[Operator]:
        samples = sum(part.sampled for part in parts)
        return both_ends(self.shape, _tokens(parts), samples, self.precision, self.tensor)


def _tokens(parts: Iterable[Part]) -> int:
    return sum(part.num_tokens for part in parts)
