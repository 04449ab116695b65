"""Engines in their places in a cluster: a `Node` steps one of them, a `Pool` has several and a router before them."""

from collections.abc import Callable, Sequence

from miniserve.core.hashing import BlockHash
from miniserve.core.request import Request
from miniserve.core.routing import Router
from miniserve.core.scheduler import Output
from miniserve.simulate.events import Events
from miniserve.simulate.instance import Instance


class Node:
    """An engine: it steps while it has work. It can fail, and is there again after a while, with nothing cached.

    Args:
        instance: the engine.
        events: of the cluster.
        take: told what came of each step, as soon as it has begun.
    """

    def __init__(self, instance: Instance, events: Events, take: Callable[["Node", Sequence[Output]], None]) -> None:
        self.instance, self._events, self._take = instance, events, take
        self.is_down = self._is_stepping = False

    def submit(self, request: Request) -> None:
        """Raises InvalidRequestError if it can never fit."""
        self.instance.submit(request, self._events.now_s)
        if not self._is_stepping:
            self._is_stepping = True
            self._events.at(self._events.now_s, self._step)

    def fail(self, seconds: float) -> list[str]:
        """It is down for so long. The names of the requests that it had."""
        lost = list(self.instance.live)
        self.instance.start()
        self.is_down = True
        self._events.at(self._events.now_s + seconds, self._recover)
        return lost

    def _recover(self) -> None:
        self.is_down = False

    def _step(self) -> None:
        if self.is_down or not self.instance.has_work:
            self._is_stepping = False
            return
        outputs = self.instance.step(self._events.now_s)
        self._take(self, outputs)
        self._events.at(self.instance.free_s, self._step)


class Pool:
    """Engines that do the same work.

    Args:
        nodes: at least one, all with blocks of one size.
        router: chooses among them.
        prefix_caching: whether prompts may share blocks.
    """

    def __init__(self, nodes: Sequence[Node], router: Router, prefix_caching: bool) -> None:
        self.nodes, self._router, self._prefix_caching = nodes, router, prefix_caching
        self._block_size = nodes[0].instance.deployment.block_size

    def choose(self, request: Request, *, even_if_down: bool = False) -> Node | None:
        """Who gets a request.

        Args:
            request: what will be computed.
            even_if_down: rather somebody who is down than nobody.

        Returns:
            None: all of them are down.
        """
        up = [node for node in self.nodes if not node.is_down] or (self.nodes if even_if_down else ())
        if not up:
            return None
        return up[self._router.choose(self.hashes(request), self._block_size, [node.instance for node in up])]

    def missing(self, request: Request, node: Node) -> int:
        """Tokens of a request, but for the last, whose KV that engine has not."""
        return request.num_prompt_tokens - 1 - self._block_size * node.instance.cached_blocks(self.hashes(request))

    def hashes(self, request: Request) -> list[BlockHash]:
        """Of the blocks that its engine may have cached: full ones, without the last token."""
        full = (request.num_prompt_tokens - 1) // self._block_size if self._prefix_caching else 0
        return request.block_hashes(self._block_size, full)[:full]
