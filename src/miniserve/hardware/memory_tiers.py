"""Where KV may be kept beside an accelerator: its host's memory, a local drive, a context memory on the network.

Capacity and bandwidth are one accelerator's part of what its machine has, and its alone: of memory that two share, each
has half. Reads count in one direction. What an engine of several accelerators has is so many times that.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from miniserve.hardware.figures import Figure


@dataclass(frozen=True)
class MemoryTier:
    """One kind of such memory, beside some accelerators.

    Attributes:
        key: its own name; `kind`: the one that it goes by beside an accelerator, such as `dram`.
        accelerators: the keys of those that have it.
        figures: `capacity_bytes`, `read_bandwidth_bytes_per_s` and `latency_s`, the time of a read of nothing.
        shared: all engines see the same blocks in it; else each has its own.
    """

    key: str
    kind: str
    name: str
    accelerators: tuple[str, ...]
    figures: Mapping[str, Figure]
    shared: bool = False
    notes: tuple[str, ...] = ()

    @property
    def capacity_bytes(self) -> float:
        """Of one accelerator, bytes."""
        return self.figures["capacity_bytes"].value

    @property
    def read_bandwidth(self) -> float:
        """Of one accelerator, bytes/s."""
        return self.figures["read_bandwidth_bytes_per_s"].value

    @property
    def latency_s(self) -> float:
        """Before the first byte comes."""
        return self.figures["latency_s"].value

    def all_figures(self) -> Iterator[tuple[str, Figure]]:
        """Every number with its name."""
        yield from self.figures.items()
