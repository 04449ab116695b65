"""A `Planner` at work on a simulated cluster: it looks once an interval, starts engines and stops them.

The cluster has all engines that there can be; most are off. One that is ordered takes its time to start. One that is to
go takes nothing new, ends what it has, and is off then: no request is lost. Those that are only starting, or only
leaving, are the first whose orders are taken back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from miniserve.core.scaling import Counts, Meter, Observed, Planner
from miniserve.errors import InvalidRequestError
from miniserve.simulate.events import Events
from miniserve.simulate.pool import Node, State
from miniserve.simulate.rates import EngineRates
from miniserve.workloads.service import SLO


@dataclass(frozen=True)
class Scaling:
    """A planner's settings.

    Attributes:
        interval_s: between two looks.
        start_s: until an engine that is ordered takes requests: a machine, a process, a model's weights.
        hold, margin: see `Planner`.
        min_prefill, min_decode: engines of each kind at the least, and at the beginning.
        attainment: the share of the requests that must be within each limit; see `EngineRates`.

    Example:
        >>> from miniserve.simulate.build import run
        >>> from miniserve.simulate.scaling import Scaling
        >>> from miniserve.simulate.scenario import Engines, Scenario, Workload
        >>> asked = Workload(rate=20.0, output="32", requests=150)
        >>> planner, engines = Scaling(interval_s=2.0, start_s=1.0), Engines("h100", number=4)
        >>> cluster = run(Scenario("qwen3-8b", (engines,), asked, planner=planner, slo="ttft:500,tpot:20"))
        >>> [f"{share:.0%}" for share in cluster.on]  # of the time each engine was paid for
        ['100%', '75%', '0%', '0%']
    """

    interval_s: float = 60.0
    start_s: float = 60.0
    hold: int = 10
    margin: float = 0.2
    min_prefill: int = 1
    min_decode: int = 1
    attainment: float = 0.95

    def __post_init__(self) -> None:
        if not (0 < self.interval_s < float("inf") and 0 <= self.start_s < float("inf")):
            message = f"a planner's interval_s is {self.interval_s}: above 0; start_s is {self.start_s}: 0 at least"
            raise InvalidRequestError(message)
        if not 0 < self.attainment < 1:
            raise InvalidRequestError(f"a planner's attainment is {self.attainment}: it must be between 0 and 1")
        if self.min_prefill < 1 or self.min_decode < 1:
            raise InvalidRequestError("min_prefill and min_decode of a planner must be 1 at least")


class Look(NamedTuple):
    """What was seen at a moment, and done: engines wanted, and those that are not off."""

    at_s: float
    observed: Observed
    wanted: Counts
    paid: Counts


class Scaler:
    """Of one cluster.

    Args:
        scaling: its settings.
        slo: the limits that engines are planned for.
        meter: of what comes and ends.
        prefill, decode: all engines that there can be; those for prompts may be none.
        events: of the cluster.

    Attributes:
        looks: what was done, in order.
    """

    def __init__(
        self,
        scaling: Scaling,
        slo: SLO,
        meter: Meter,
        prefill: Sequence[Node],
        decode: Sequence[Node],
        events: Events,
    ) -> None:
        self._scaling, self._meter, self._events = scaling, meter, events
        self._prefill, self._decode, self.looks = prefill, decode, list[Look]()
        first = prefill[0].instance.deployment if prefill else None
        rates = EngineRates(decode[0].instance.deployment, first, slo, scaling.attainment)
        least = Counts(scaling.min_prefill if prefill else 0, scaling.min_decode)
        most = Counts(len(prefill), len(decode))
        self._planner = Planner(rates, least, most, hold=scaling.hold, margin=scaling.margin)
        for node in (*prefill[least.prefill :], *decode[least.decode :]):
            node.stop()
        self._again()

    def _again(self) -> None:
        self._events.at(self._events.now_s + self._scaling.interval_s, self._look, needed=False)

    def _look(self) -> None:
        now = Counts(len(_wanted(self._prefill)), len(_wanted(self._decode)))
        waiting = sum(node.instance.load.prompt_tokens for node in self._prefill)
        decoding = sum(len(node.instance.live) for node in self._decode)
        observed = self._meter.read(self._scaling.interval_s, waiting, decoding)
        if observed.prompt_tokens:  # of those that wait, as much is cached as of those that came
            observed = observed._replace(waiting_tokens=waiting * observed.missing_tokens / observed.prompt_tokens)
        wanted = self._planner.wanted(observed, now)
        for nodes, count in zip((self._prefill, self._decode), wanted, strict=True):
            self._make(nodes, count)
        paid = Counts(*(sum(node.state is not State.OFF for node in nodes) for nodes in (self._prefill, self._decode)))
        self.looks.append(Look(self._events.now_s, observed, wanted, paid))
        self._again()

    def _make(self, nodes: Sequence[Node], count: int) -> None:
        """So many of them take requests, or will."""
        wanted = _wanted(nodes)
        for node in _sorted(nodes, State.LEAVING, State.OFF)[: max(0, count - len(wanted))]:
            node.start(self._scaling.start_s)
        for node in _sorted(wanted, State.STARTING, State.ON)[: max(0, len(wanted) - count)]:
            node.stop()


def _wanted(nodes: Sequence[Node]) -> list[Node]:
    return [node for node in nodes if node.state in (State.STARTING, State.ON)]


def _sorted(nodes: Sequence[Node], *states: State) -> list[Node]:
    """Those that are in one of these states, the first's first; of each, those with the least to do."""
    found = [node for node in nodes if node.state in states]
    return sorted(found, key=lambda node: (states.index(node.state), len(node.instance.live)))
