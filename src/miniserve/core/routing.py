"""Policies that choose which of several engines gets a request. Pure: real fleets and simulated ones use the same.

What a policy may know of an engine is an `EngineView`: how much it has to do, and how much of a prompt it has cached.
A fleet keeps that up to date from the engines' events; a simulator looks.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import NamedTuple, Protocol

from miniserve.core.hashing import BlockHash


class Load(NamedTuple):
    """What an engine has to do.

    Attributes:
        prompt_tokens: that are still to be computed, of requests that wait or are in the middle of their prompt.
        used_blocks: of KV, in use by requests that run or will be by those that wait.
        num_requests: that run or wait.
    """

    prompt_tokens: int
    used_blocks: int
    num_requests: int


class EngineView(Protocol):
    """What a policy may ask about an engine."""

    @property
    def load(self) -> Load:
        """What it has to do."""
        ...

    def cached_blocks(self, hashes: Sequence[BlockHash]) -> int:
        """How many of these blocks, from the first on without a gap, it has."""
        ...


class Router(Protocol):
    """A policy."""

    def choose(self, hashes: Sequence[BlockHash], block_size: int, engines: Sequence[EngineView]) -> int:
        """The index of the engine that gets a request.

        Args:
            hashes: of its prompt's full blocks; empty where nothing can be shared.
            block_size: tokens of a block.
            engines: at least one.
        """
        ...


class RoundRobin:
    """Each in turn.

    Example:
        >>> from miniserve.core.routing import RoundRobin
        >>> router = RoundRobin()
        >>> [router.choose([], 16, ["an engine", "another"]) for _ in range(3)]
        [0, 1, 0]
    """

    def __init__(self) -> None:
        self._turns = count()

    def choose(self, hashes: Sequence[BlockHash], block_size: int, engines: Sequence[EngineView]) -> int:  # noqa: ARG002
        """Of `Router`."""
        return next(self._turns) % len(engines)


class LeastLoaded:
    """Whoever has the fewest requests, and among those the fewest blocks; of equal ones each in turn."""

    def __init__(self) -> None:
        self._turns = count()

    def choose(self, hashes: Sequence[BlockHash], block_size: int, engines: Sequence[EngineView]) -> int:  # noqa: ARG002
        """Of `Router`."""
        loads = [engine.load for engine in engines]
        return _least([(load.num_requests, load.used_blocks) for load in loads], next(self._turns))


class KVAware:
    """Whoever is done first with the prompt, counted in blocks, its own decodes weighed in; of equal ones each in turn.

    cost = overlap_weight · (blocks of prompts to compute, this one's that are not cached included) + blocks in use,
    the form that NVIDIA Dynamo's router has. A weight of 0 looks at load alone.

    Args:
        overlap_weight: of a block to compute against a block that decodes read.

    Example:
        >>> from types import SimpleNamespace
        >>> from miniserve.core.routing import KVAware, LeastLoaded, Load
        >>> def engine(used_blocks, cached):
        ...     load = Load(prompt_tokens=0, used_blocks=used_blocks, num_requests=used_blocks // 5)
        ...     return SimpleNamespace(load=load, cached_blocks=lambda hashes: cached)
        >>> engines = [engine(used_blocks=20, cached=30), engine(used_blocks=0, cached=0)]
        >>> prompt = [bytes([block]) for block in range(32)]
        >>> KVAware().choose(prompt, 16, engines), LeastLoaded().choose(prompt, 16, engines)
        (0, 1)
    """

    def __init__(self, overlap_weight: float = 1.0) -> None:
        self._weight, self._turns = overlap_weight, count()

    def choose(self, hashes: Sequence[BlockHash], block_size: int, engines: Sequence[EngineView]) -> int:
        """Of `Router`."""
        costs = []
        for engine in engines:
            load = engine.load
            prefill = load.prompt_tokens / block_size + len(hashes) - engine.cached_blocks(hashes)
            costs.append((self._weight * prefill + load.used_blocks, load.num_requests))
        return _least(costs, next(self._turns))


def _least(costs: Sequence[tuple[float, float]], turn: int) -> int:
    """Where the cost is least; of several such places the next one, counted from `turn`."""
    return min(range(len(costs)), key=lambda at: (costs[at], (at - turn) % len(costs)))


#: Makes a fresh router, by the name that commands and scenarios know it under.
ROUTERS: Mapping[str, Callable[[], Router]] = {
    "round-robin": RoundRobin,
    "least-loaded": LeastLoaded,
    "kv-aware": KVAware,
}
