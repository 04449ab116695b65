"""Engines in their places in a cluster: a `Node` steps one of them, a `Pool` has several and a router before them."""

from collections.abc import Callable, Sequence
from enum import Enum, auto

from miniserve.core.hashing import BlockHash
from miniserve.core.request import Request
from miniserve.core.routing import Router
from miniserve.core.scheduler import Output
from miniserve.simulate.events import Events
from miniserve.simulate.instance import Instance


class State(Enum):
    """Of an engine's devices: nobody pays for those that are off."""

    OFF = auto()
    STARTING = auto()
    ON = auto()
    LEAVING = auto()  # takes nothing more, and is off when it has ended what it had


class Node:
    """An engine: it steps while it has work. It can fail, and is there again after a while, with nothing cached. It can
    be stopped, loses nothing by that, and can be started again, with nothing cached.

    Args:
        instance: the engine; it is on.
        events: of the cluster.
        take: told what came of each step, as soon as it has begun.
        is_last: whether requests end here, so that its steps concern no other engine.

    Attributes:
        state: see `State`.
        promised: requests that it waits for, or whose KV it still sends: it is not off before.
    """

    def __init__(
        self, instance: Instance, events: Events, take: Callable[["Node", Sequence[Output]], None], is_last: bool
    ) -> None:
        self.instance, self._events, self._take, self._is_last = instance, events, take, is_last
        self.is_down = self._is_stepping = False
        self.state, self.promised = State.ON, 0
        self._paid_s, self._since_s, self._starts = 0.0, 0.0, 0

    @property
    def takes(self) -> bool:
        """Whether it may be given a request."""
        return self.state is State.ON and not self.is_down

    @property
    def paid_s(self) -> float:
        """How long it has not been off."""
        return self._paid_s + (self._events.now_s - self._since_s if self.state is not State.OFF else 0.0)

    def start(self, seconds: float) -> None:
        """It is on in so long; at once, if it was only about to leave."""
        if self.state is State.LEAVING:
            self.state = State.ON
            return
        self.state, self._since_s, self._starts = State.STARTING, self._events.now_s, self._starts + 1
        which = self._starts
        self._events.at(self._events.now_s + seconds, lambda: self._started(which), needed=False)

    def stop(self) -> None:
        """It ends what it has, and then it is off; at once, if it was only starting."""
        if self.state is State.STARTING:
            self._off()
        else:
            self.state = State.LEAVING
            self.leave()

    def leave(self) -> None:
        """Be off, if it was to be, and has ended everything."""
        if self.state is State.LEAVING and not (self.promised or self.instance.live or self._is_stepping):
            self._off()

    def submit(self, request: Request) -> None:
        """Raises InvalidRequestError if it can never fit."""
        self.instance.submit(request, self._events.now_s)
        if not self._is_stepping:
            self._is_stepping = True
            self._events.at(self._events.now_s, self._step, shared=not self._is_last)

    def fail(self, seconds: float) -> list[str]:
        """It is down for so long. The names of the requests that it had."""
        if self.state in (State.OFF, State.STARTING):
            return []
        lost = list(self.instance.live)
        self.instance.start()
        self.is_down = True
        self._events.at(self._events.now_s + seconds, self._recover)
        return lost

    def _recover(self) -> None:
        self.is_down = False
        self.leave()

    def _started(self, which: int) -> None:
        if self.state is State.STARTING and which == self._starts:
            self.state = State.ON
            self.instance.start()

    def _off(self) -> None:
        self._paid_s, self.state = self.paid_s, State.OFF

    def _step(self) -> None:
        if self.is_down or not self.instance.has_work:
            self._is_stepping = False
            self.leave()
            return
        outputs = self.instance.step(self._events.now_s)
        self._take(self, outputs)
        self._events.at(self.instance.free_s, self._step, shared=not self._is_last)


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
            even_if_down: rather somebody who is down, or about to leave, than nobody.

        Returns:
            None: nobody takes it.
        """
        up = [node for node in self.nodes if node.takes]
        if not up and even_if_down:
            up = [node for node in self.nodes if node.state in (State.ON, State.LEAVING)]
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
