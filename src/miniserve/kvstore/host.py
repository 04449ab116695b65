"""`HostTier`: KV blocks in the host's memory, least recently used out first.

One piece of memory is taken at the start and cut into slots, so that nothing grows or fragments; pages that were never
written take none. Used by one thread, but for `in`, which any may ask.
"""

from collections import OrderedDict

import numpy as np

from miniserve.core.kv_counts import TierCounts
from miniserve.errors import InvalidRequestError
from miniserve.kvstore.record import BlockKey, Record


class HostTier:
    """As many blocks as fit into `capacity_bytes`.

    Args:
        capacity_bytes: for payloads; what is known of each besides, some 200 bytes, comes on top.
        stored_bytes: of one payload.

    Raises:
        InvalidRequestError: not one fits.
    """

    name = "host"

    def __init__(self, capacity_bytes: int, stored_bytes: int) -> None:
        num_slots = capacity_bytes // stored_bytes
        if num_slots < 1:
            raise InvalidRequestError(
                f"the host tier may take {capacity_bytes} bytes: a KV block of this model takes {stored_bytes}"
            )
        self.counts = TierCounts(capacity_bytes=num_slots * stored_bytes)
        self._slots = np.empty((num_slots, stored_bytes), np.uint8)
        self._free = list(range(num_slots))
        self._places: OrderedDict[BlockKey, tuple[int, int]] = OrderedDict()  # slot and checksum, oldest first

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._places

    def look(self, key: BlockKey) -> bool:
        """Whether it is here."""
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def put(self, record: Record) -> None:
        """Keep a copy of a block that is not here yet."""
        if record.key in self._places:
            return
        if not self._free:
            _, (slot, _) = self._places.popitem(last=False)
            self._free.append(slot)
            self.counts.evictions += 1
        slot = self._free.pop()
        self._slots[slot] = record.payload
        self._places[record.key] = slot, record.checksum
        self._note(saved=1)

    def get(self, key: BlockKey) -> Record | None:
        """A block, whose payload is the tier's own memory: to be used before the next `put`. None if it is not here.

        One that is not sound any more is forgotten.
        """
        place = self._places.get(key)
        if place is None:
            return None
        self._places.move_to_end(key)
        slot, checksum = place
        record = Record(key, self._slots[slot], checksum)
        if record.is_sound:
            return record
        self.counts.corrupt += 1
        del self._places[key]
        self._free.append(slot)
        self._note()
        return None

    def delete(self, owner: bytes) -> int:
        """Forget a tenant's blocks, and overwrite them. Returns how many it had."""
        wanted = [key for key in self._places if key.owner == owner]
        for key in wanted:
            slot, _ = self._places.pop(key)
            self._slots[slot] = 0
            self._free.append(slot)
        self._note()
        return len(wanted)

    def check(self) -> None:
        """Raise AssertionError unless every slot is free or has one block. For tests."""
        slots = [slot for slot, _ in self._places.values()]
        assert sorted(slots + self._free) == list(range(len(self._slots)))

    def _note(self, saved: int = 0) -> None:
        size = self._slots.shape[1]
        self.counts.saves += saved
        self.counts.saved_bytes += saved * size
        self.counts.used_bytes = len(self._places) * size
