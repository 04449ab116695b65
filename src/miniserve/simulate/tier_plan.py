"""`TierPlan`: a tier that engines are to have, in numbers, before there is one.

The numbers are a user's, or the catalogue's for what lies beside each device. What a tier then does is in `tiers`.
"""

import math
from dataclasses import dataclass, replace

from miniserve.errors import InvalidRequestError
from miniserve.hardware.memory_tiers import MemoryTier
from miniserve.simulate.storage import Link


@dataclass(frozen=True)
class TierPlan:
    """A tier that engines are to have.

    Attributes:
        name: for reports.
        num_bytes: that it holds.
        bandwidth, latency_s: of an engine's reads, bytes/s in one direction.
        shared: one for all engines, each with its own link; else each has its own.
        per_device: bytes and bandwidth are of each of the engine's devices.

    Example:
        >>> from miniserve.simulate.tier_plan import TierPlan
        >>> flash = TierPlan("flash", num_bytes=4e12, bandwidth=12e9, latency_s=1e-4, shared=True)
        >>> flash.num_blocks(block_bytes=2**20)
        3814697
    """

    name: str
    num_bytes: float
    bandwidth: float
    latency_s: float = 0.0
    shared: bool = False
    per_device: bool = False

    @classmethod
    def beside(cls, found: MemoryTier) -> "TierPlan":
        """What the catalogue has beside each device."""
        return cls(found.kind, found.capacity_bytes, found.read_bandwidth, found.latency_s, found.shared, True)

    def of(self, devices: float, together: float) -> "TierPlan":
        """An engine's, of so many devices, or of all engines' together if they share it; its link is its own."""
        if not self.per_device:
            return self
        holds = self.num_bytes * (together if self.shared else devices)
        return replace(self, num_bytes=holds, bandwidth=self.bandwidth * devices, per_device=False)

    def num_blocks(self, block_bytes: float) -> int:
        """Of that size, that it holds. Raises InvalidRequestError if it has no room for one."""
        if not 0 < self.num_bytes < math.inf:
            raise InvalidRequestError(f"the tier '{self.name}' has {self.num_bytes} bytes: it needs some, and an end")
        if self.num_bytes < block_bytes:
            has = f"the tier '{self.name}' has {self.num_bytes:,.0f} bytes"
            raise InvalidRequestError(f"{has}: not one KV block of an engine fits, which are {block_bytes:,.0f} each")
        return int(self.num_bytes // block_bytes)

    def link(self) -> Link:
        """To it. Raises InvalidRequestError if it is none."""
        return Link(self.bandwidth, self.latency_s)
