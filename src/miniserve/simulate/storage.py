"""KV that comes from elsewhere, as the scheduler's `KVConnector` sees it: delivered by a peer, or kept in a tier.

A `Link` is what bytes go through: one transfer at a time, each after a latency. Bandwidths are one direction, bytes/s.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from miniserve.core.connector import Progress
from miniserve.core.hashing import BlockHash
from miniserve.core.loading import Piece, Seconds, worth_loading
from miniserve.core.request import Request
from miniserve.errors import InvalidRequestError


@dataclass
class Link:
    """Transfers queue up behind one another."""

    bandwidth: float
    latency_s: float = 0.0
    free_s: float = 0.0
    busy_s: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.bandwidth < math.inf and 0 <= self.latency_s < math.inf):
            message = f"a link's bandwidth, {self.bandwidth} bytes/s, must be above 0, its latency, {self.latency_s} s,"
            raise InvalidRequestError(f"{message} 0 at least, and both finite")

    def seconds(self, num_bytes: float, now_s: float) -> float:
        """How long a transfer that is asked for now would take, those before it included."""
        return max(0.0, self.free_s - now_s) + num_bytes / self.bandwidth + self.latency_s

    def send(self, num_bytes: float, now_s: float) -> float:
        """When a transfer that is asked for now has arrived."""
        begin_s, takes_s = max(now_s, self.free_s), num_bytes / self.bandwidth
        self.free_s = begin_s + takes_s
        self.busy_s += takes_s
        return self.free_s + self.latency_s


class Delivered:
    """KV of prompts that another engine has computed, and that has arrived with the request."""

    def __init__(self) -> None:
        self._expected: set[str] = set()
        self._loaded: list[tuple[Request, int]] = []

    def expect(self, request: Request) -> None:
        """The KV of all its tokens but the last is here: once; after a preemption it is computed."""
        self._expected.add(request.request_id)

    @property
    def next_s(self) -> float:
        """When something will have been loaded: at once, if it is asked for at all."""
        return -math.inf if self._loaded else math.inf

    def lookup(self, request: Request, num_computed: int) -> int:
        """Of `KVConnector`."""
        return len(request.token_ids) - 1 - num_computed if request.request_id in self._expected else 0

    def load(self, request: Request, start: int, num_tokens: int) -> None:  # noqa: ARG002
        """Of `KVConnector`."""
        self._expected.discard(request.request_id)
        self._loaded.append((request, num_tokens))

    def computed(self, request: Request, first_block: int) -> Sequence[int]:  # noqa: ARG002
        """Of `KVConnector`."""
        return ()

    def finished(self, request: Request) -> Sequence[int]:
        """Of `KVConnector`."""
        self._expected.discard(request.request_id)
        return ()

    def poll(self, wait: bool) -> Progress:  # noqa: ARG002
        """Of `KVConnector`."""
        loaded, self._loaded = self._loaded, []
        return Progress(loaded)


class Tier:
    """Blocks by hash in memory of another kind, least recently used out first. Several engines may share one.

    Args:
        name: for reports.
        num_blocks: that it holds.
    """

    def __init__(self, name: str, num_blocks: int) -> None:
        if num_blocks < 1:
            raise InvalidRequestError(f"the tier '{name}' has room for {num_blocks} blocks: it needs one at least")
        self.name, self.num_blocks = name, num_blocks
        self._blocks: OrderedDict[BlockHash, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def put(self, hashes: Sequence[BlockHash]) -> None:
        """Keep these."""
        for each in hashes:
            self._blocks[each] = None
            self._blocks.move_to_end(each)
        while len(self._blocks) > self.num_blocks:
            self._blocks.popitem(last=False)

    def prefix(self, hashes: Sequence[BlockHash]) -> int:
        """How many of these it has, from the first on without a gap."""
        found = 0
        for each in hashes:
            if each not in self._blocks:
                break
            self._blocks.move_to_end(each)
            found += 1
        return found


class Tiered:
    """One engine's way to a tier: every block that fills up is written there, in the background and for nothing; blocks
    that a prompt needs, and the device has not, are read back over a link.

    Args:
        tier: shared or its own.
        link: what reads go through.
        block_size: tokens.
        block_bytes: of all devices of the engine.
        clock: the engine's.
        recompute_s: how long tokens take to compute, if only what is faster to load is loaded; None: whatever is found.
    """

    def __init__(
        self,
        tier: Tier,
        link: Link,
        *,
        block_size: int,
        block_bytes: float,
        clock: Callable[[], float],
        recompute_s: Seconds | None = None,
    ) -> None:
        self.tier, self.link, self._recompute_s = tier, link, recompute_s
        self._size, self._bytes, self._clock = block_size, block_bytes, clock
        self._loading: list[tuple[float, Request, int]] = []
        self.loaded_tokens = 0

    @property
    def next_s(self) -> float:
        """When the next load will have ended; infinite if none is under way."""
        return min((end_s for end_s, _, _ in self._loading), default=math.inf)

    def lookup(self, request: Request, num_computed: int) -> int:
        """Of `KVConnector`."""
        first, full = num_computed // self._size, (len(request.token_ids) - 1) // self._size
        hashes = request.block_hashes(self._size, full)[first:full]
        found = self.tier.prefix(hashes)
        if not found or self._recompute_s is None:
            return found * self._size
        piece = Piece(found * self._size, self.link.seconds(found * self._bytes, self._clock()))
        return worth_loading(num_computed, [piece], self._recompute_s)

    def load(self, request: Request, start: int, num_tokens: int) -> None:  # noqa: ARG002
        """Of `KVConnector`."""
        end_s = self.link.send(num_tokens // self._size * self._bytes, self._clock())
        self._loading.append((end_s, request, num_tokens))

    def computed(self, request: Request, first_block: int) -> Sequence[int]:
        """Of `KVConnector`."""
        self.tier.put(request.block_hashes(self._size, request.num_registered)[first_block : request.num_registered])
        return ()

    def finished(self, request: Request) -> Sequence[int]:  # noqa: ARG002
        """Of `KVConnector`."""
        return ()

    def poll(self, wait: bool) -> Progress:  # noqa: ARG002
        """Of `KVConnector`."""
        now_s = self._clock()
        ended = [(request, tokens) for end_s, request, tokens in self._loading if end_s <= now_s]
        if ended:
            self._loading = [each for each in self._loading if each[0] > now_s]
            self.loaded_tokens += sum(tokens for _, tokens in ended)
        return Progress(ended)
