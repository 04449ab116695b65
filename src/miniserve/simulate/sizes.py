"""How large an engine may be, and how it is split: the sizes that a planner tries.

An engine's devices share each layer; or, of a mixture, they are ranks that share out the experts and have requests of
their own; or they are ranks of attention and devices for the feed-forward parts. Two of these at once are not tried.
"""

from collections.abc import Iterator
from typing import NamedTuple

from miniserve.hardware.afd import Sides
from miniserve.hardware.shape import Parallel, Shape

TENSOR = (1, 2, 4, 8)
BATCHES = (2, 3, 4)  # that take turns; MegaScale-Infer and Step-3 have three


class Size(NamedTuple):
    """Of an engine: `tensor` devices share each layer of each of `ranks`.

    Where there are `ffn` devices besides, they have the feed-forward parts, and requests are in `batches`; else more
    than one rank share out the experts.
    """

    tensor: int
    ranks: int = 1
    ffn: int = 0
    batches: int = 1

    @property
    def num_devices(self) -> int:
        """All of them together."""
        return self.tensor * self.ranks + self.ffn

    def __str__(self) -> str:
        if self.ffn:
            return f"{self.ranks}A+{self.ffn}F"
        return f"EP{self.ranks}" if self.ranks > 1 else f"TP{self.tensor}"

    def parallel(self, shape: Shape) -> Parallel:
        """With as many redundant experts as let all ranks hold equally many."""
        if self.ffn:
            return Parallel(self.tensor)
        return Parallel(self.tensor, self.ranks, -shape.experts.count % self.ranks if shape.experts else 0)

    def sides(self, shape: Shape) -> Sides | None:
        """The same of devices for the feed-forward parts; None: there are none."""
        if not self.ffn:
            return None
        return Sides(self.ranks, self.ffn, self.batches, -shape.experts.count % self.ffn if shape.experts else 0)


class Pool(NamedTuple):
    """Engines that are alike: as many, and see `Size`."""

    engines: int
    tensor: int
    ranks: int = 1
    ffn: int = 0
    batches: int = 1

    @property
    def size(self) -> Size:
        """Of each."""
        return Size(*self[1:])

    @property
    def all_ranks(self) -> int:
        """Of all engines together: who has requests of its own."""
        return self.engines * self.ranks

    @property
    def num_devices(self) -> int:
        """All of them together."""
        return self.engines * self.size.num_devices

    def __str__(self) -> str:
        return f"{self.engines} × {self.size}"


def sizes(num_devices: int, shape: Shape) -> list[Size]:
    """Engines whose devices are all alike: powers of two; of a mixture's ranks also as many as there are devices."""
    found = [Size(tensor) for tensor in TENSOR if tensor <= num_devices]
    if shape.experts:
        found += [Size(1, degree) for degree in _degrees(min(num_devices, shape.experts.count))]
    return found


def sizes_apart(num_devices: int) -> Iterator[Size]:
    """Engines with devices for the feed-forward parts: of as many devices, every ratio of the two sides."""
    for degree in _degrees(num_devices):
        for ffn in range(1, degree):
            yield from (Size(1, degree - ffn, ffn, batches) for batches in BATCHES)


def _degrees(most: int) -> list[int]:
    """Powers of two from 2 on, and `most` itself."""
    return sorted({2**at for at in range(1, most.bit_length()) if 2**at <= most} | ({most} - {1, 0}))
