"""KV that a peer delivers, as the scheduler's `KVConnector` sees it, and the `Link` that it comes over.

A link has one transfer at a time, each after a latency. Bandwidths are one direction, bytes/s.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from miniserve.core.connector import Progress
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
