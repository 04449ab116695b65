"""`Connectors`: several places where KV may lie, as the one connector that a scheduler has.

Each is told everything; of a prompt's KV the first that offers any brings it, and it alone: what two could bring in
turns, the second is not asked for. Nothing here depends on what they are.
"""

from collections.abc import Sequence

from miniserve.core.connector import KVConnector, Progress
from miniserve.core.request import Request


class Connectors:
    """A `KVConnector` over others.

    Args:
        connectors: in the order in which they are asked.
    """

    def __init__(self, *connectors: KVConnector) -> None:
        self._connectors = connectors
        self._offered: tuple[Request, KVConnector] | None = None  # by the last lookup, which a load follows at once

    def lookup(self, request: Request, num_computed: int) -> int:
        """Of the first that has any."""
        for connector in self._connectors:
            if num_tokens := connector.lookup(request, num_computed):
                self._offered = request, connector
                return num_tokens
        return 0

    def load(self, request: Request, start: int, num_tokens: int) -> None:
        """By the one that offered it."""
        assert self._offered is not None, "only what was looked up is loaded"
        asked, connector = self._offered
        assert asked is request, "a load follows its lookup at once"
        connector.load(request, start, num_tokens)

    def computed(self, request: Request, first_block: int) -> Sequence[int]:
        """A block that several want is held once for each."""
        return [block for each in self._connectors for block in each.computed(request, first_block)]

    def finished(self, request: Request) -> Sequence[int]:
        """A block that several want is held once for each."""
        return [block for each in self._connectors for block in each.finished(request)]

    def poll(self, wait: bool) -> Progress:
        """Of all; where there is nothing else to do, the first may sleep, so that the wait is not longer than one's."""
        progress = Progress()
        for at, connector in enumerate(self._connectors):
            one = connector.poll(wait and at == 0)
            progress.loaded += one.loaded
            progress.released += one.released
        return progress
