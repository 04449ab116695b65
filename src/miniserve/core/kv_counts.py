"""What KV that leaves the device costs and brings: `TierCounts` of one tier, `MoveCounts` of requests that move.

Whoever moves the KV counts (`kvstore`, `fleet`, a simulation); whoever exports reads. Totals, but for what is held now.
"""

from dataclasses import dataclass


@dataclass
class TierCounts:
    """What a tier of KV beside the device has done. Blocks, but for bytes and seconds.

    Attributes:
        capacity_bytes, used_bytes: how much it may hold, and does.
        hits: loaded from it.
        misses: of prompts, computed although the tiers were asked, or loaded from a slower tier: this one had them not.
        declined: had, and yet computed, since that was faster.
        saves: written to it.
        skipped: not written: too much was waiting to be already.
        evictions: dropped for room.
        corrupt: dropped because their content was not what had been written.
        errors: that the system refused to read or write.
        loaded_bytes, saved_bytes, load_s, save_s: what these moved, and how long it took; of loads with their way into
            the device, of saves without the way out of it.
    """

    capacity_bytes: int = 0
    used_bytes: int = 0
    hits: int = 0
    misses: int = 0
    declined: int = 0
    saves: int = 0
    skipped: int = 0
    evictions: int = 0
    corrupt: int = 0
    errors: int = 0
    loaded_bytes: int = 0
    saved_bytes: int = 0
    load_s: float = 0.0
    save_s: float = 0.0


@dataclass
class MoveCounts:
    """Requests that left for other engines, and came from them (see fleet/moves.py).

    Attributes:
        num_left, left_bytes, left_s: whose KV was put where others can read it, and what that took.
        num_arrived, arrived_bytes, arrived_s: whose KV was fetched, what was missing of it, and what that took.
        held, held_bytes: what stands to be fetched now.
        expired: what nobody came for in time.
        refused: for which there was no room.
        failed: copies that failed; their requests are computed again.
    """

    num_left: int = 0
    left_bytes: int = 0
    left_s: float = 0.0
    num_arrived: int = 0
    arrived_bytes: int = 0
    arrived_s: float = 0.0
    held: int = 0
    held_bytes: int = 0
    expired: int = 0
    refused: int = 0
    failed: int = 0

    def left(self, num_bytes: int, seconds: float) -> None:
        """A request's KV stands to be fetched."""
        self.num_left += 1
        self.left_bytes += num_bytes
        self.left_s += seconds
        self.held += 1
        self.held_bytes += num_bytes

    def arrived(self, num_bytes: int, seconds: float) -> None:
        """A request's KV is here."""
        self.num_arrived += 1
        self.arrived_bytes += num_bytes
        self.arrived_s += seconds
