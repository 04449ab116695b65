"""`Cluster`: simulated engines, a router in front of them, and what happens between them, event by event.

Aggregated: a request is computed where the router sends it. Disaggregated: its prompt and first token are computed by
an engine of the prefill pool; its KV goes to one of the decode pool, which computes the rest (`handover`), or all of it
where a rule says that little is to be computed.

Events come in order of time, and nothing here is random: the same arrivals give the same result. A step is computed
when it begins (see `Instance`). How far an engine may compute ahead of the others is its horizon: the next arrival, or
the next moment at which another engine's end could send it something.
Memory: of requests that are under way only.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from miniserve.core.disaggregation import Disaggregation
from miniserve.core.request import Request
from miniserve.core.routing import LeastLoaded, RoundRobin, Router
from miniserve.core.sampling_params import SamplingParams
from miniserve.core.scaling import Meter
from miniserve.core.scheduler import Output
from miniserve.errors import InvalidRequestError
from miniserve.simulate.deployment import Deployment
from miniserve.simulate.events import Events
from miniserve.simulate.flight import Flight
from miniserve.simulate.handover import RETRY_S, HandOver
from miniserve.simulate.instance import Instance
from miniserve.simulate.outage import Outage
from miniserve.simulate.pool import Node, Pool
from miniserve.simulate.scaling import Scaler, Scaling
from miniserve.simulate.source import Source
from miniserve.simulate.storage import Delivered, Link
from miniserve.simulate.tally import Tally
from miniserve.simulate.tier_plan import TierPlan
from miniserve.simulate.tiers import Stacks
from miniserve.simulate.timeline import Timeline
from miniserve.simulate.window import Window
from miniserve.workloads.arrivals import Arrival
from miniserve.workloads.service import SLO


@dataclass
class Cluster:
    """A simulation; `run` it once.

    Args:
        engines: what each runs on: those that decode, and all of them if none is for prefill alone.
        router: chooses among the engines that prompts go to.
        slo: what counts as good.
        prefill: of each engine for prefill alone; none: aggregated.
        apart: which prompts the prefill pool computes; None: all.
        decode_router: chooses where KV goes.
        make_link: what the KV of one prefill engine goes through.
        tiers: where engines that compute prompts keep KV besides, the nearest first.
        load_if_faster: load only what takes longer to compute; else whatever is found.
        prefix_caching: whether prompts may share blocks.
        outages: what fails.
        scaling: has as many of the engines run as the load needs; None: all run.
        timeline: is told what each engine does.
        leaps: compute runs of alike steps at once; the result is the same.

    Example:
        >>> import random
        >>> from itertools import islice
        >>> from miniserve.core.routing import KVAware
        >>> from miniserve.simulate.build import deployment_of
        >>> from miniserve.simulate.cluster import Cluster
        >>> from miniserve.simulate.scenario import Engines
        >>> from miniserve.workloads.presets import preset
        >>> engine = deployment_of("qwen3-8b", Engines("h100", weights="fp8"))
        >>> cluster = Cluster([engine, engine], router=KVAware())
        >>> tally = cluster.run(islice(preset("chat", random.Random(0), rate_per_s=1.0), 10))
        >>> tally.tasks, tally.completed, tally.cached_tokens / tally.prompt_tokens > 0.5
        (10, 58, True)
    """

    engines: Sequence[Deployment]
    router: Router = field(default_factory=RoundRobin)
    slo: SLO = field(default_factory=SLO)
    prefill: Sequence[Deployment] = ()
    apart: Disaggregation | None = None
    decode_router: Router = field(default_factory=LeastLoaded)
    make_link: Callable[[], Link] = lambda: Link(50e9, 1e-4)
    tiers: Sequence[TierPlan] = ()
    load_if_faster: bool = False
    prefix_caching: bool = True
    outages: Sequence[Outage] = ()
    scaling: Scaling | None = None
    timeline: Timeline | None = None
    leaps: bool = True

    def __post_init__(self) -> None:
        deployments = [*self.prefill, *self.engines]
        if not self.engines:
            raise InvalidRequestError("0 engines: one must decode at least")
        if len(sizes := {each.block_size for each in deployments}) > 1:
            raise InvalidRequestError(f"engines that pass blocks on need them of one size, not {sorted(sizes)} tokens")
        self.window = Window(self.slo)
        self._flights: dict[str, Flight] = {}
        self._names = count()
        self._events = Events()
        self._source = Source(iter(()))
        computing = self.prefill or self.engines
        self._stacks = Stacks(self.tiers, self.load_if_faster, sum(each.parallel.tensor for each in computing))
        self._nodes = [
            Node(self._instance(at, on), self._events, self._take, is_last=at >= len(self.prefill))
            for at, on in enumerate(deployments)
        ]
        self.instances = [node.instance for node in self._nodes]
        fronts, backs = self._nodes[: len(self.prefill)], self._nodes[len(self.prefill) :]
        self._front = Pool(fronts or backs, self.router, self.prefix_caching)
        self._back = Pool(backs, self.decode_router, self.prefix_caching)
        scaling, self._meter = self.scaling, Meter()
        self.scaler = Scaler(scaling, self.slo, self._meter, fronts, backs, self._events) if scaling else None
        self._handover = HandOver(self._back, {node: self.make_link() for node in fronts}, self._events, self._submit)
        names = [instance.name for instance in self.instances]
        for outage in self.outages:
            outage.check(names)
        if self.timeline:
            self.timeline.begin(names)

    def _instance(self, at: int, deployment: Deployment) -> Instance:
        behind = at - len(self.prefill)
        decodes_alone = bool(self.prefill) and behind >= 0
        name = f"decode {behind}" if decodes_alone else f"{'prefill' if self.prefill else 'engine'} {at}"
        return Instance(
            name, deployment, horizon=self._horizon(decodes_alone) if self.leaps else None,
            prefix_caching=self.prefix_caching,
            make_connector=(lambda _: Delivered()) if decodes_alone else partial(self._stacks.connector, deployment),
        )  # fmt: skip

    @property
    def now_s(self) -> float:
        """The present."""
        return self._events.now_s

    @property
    def tally(self) -> Tally:
        """Of the requests that count."""
        return self.window.tally

    @property
    def on(self) -> list[float]:
        """By engine: the share of the time until now in which somebody paid for it."""
        return [node.paid_s / self.now_s if self.now_s else 1.0 for node in self._nodes]

    @property
    def utilisation(self) -> dict[str, float]:
        """By engine that was on: the share of that time in which it has computed. Empty if no time has passed."""
        on = {node.instance: node.paid_s for node in self._nodes}
        return {each.name: each.busy_until(self.now_s) / paid_s for each, paid_s in on.items() if paid_s}

    @property
    def seconds(self) -> float:
        """That the tally is of."""
        return self.window.seconds(self.now_s)

    def run(
        self, arrivals: Iterator[Arrival], *, concurrency: int | None = None, warmup: int = 0,
        counted: int | None = None, progress: Callable[[int], None] | None = None,
    ) -> Tally:  # fmt: skip
        """Serve all of `arrivals`.

        Args:
            arrivals: in order of time.
            concurrency: send one when another has ended, so that there are always so many, whatever their times.
            warmup: the first so many requests are served, and not counted: a closed loop begins with everybody at once.
            counted: so many after them are; those that follow keep the load up until these have ended, and no longer.
                None: all.
            progress: called with the number of requests that have ended, now and then.
        """
        self._source = Source(arrivals, is_closed=concurrency is not None)
        self.window = Window(self.slo, warmup, counted)
        # Whether what ends in one engine may begin something in another.
        self._coupled = self._source.is_closed or bool(self.outages)
        for outage in self.outages:
            self._events.at(outage.at_s, lambda outage=outage: self._fail(outage))  # type: ignore[misc]
        for _ in range(concurrency or 0):
            self._send_another()
        steps = 0
        while not self.window.is_over:
            if self._source.next_s <= self._events.next_s and self._source.next_s < math.inf:
                arrival = self._source.take()
                self._events.now_s = arrival.at_s
                self._arrive(arrival)
                continue
            if not self._events and self._source.next_s == math.inf:
                break
            self._events.happen()
            steps += 1
            if progress and steps % 2000 == 0:
                progress(self.tally.completed)
        assert not any(flight.counts for flight in self._flights.values()), "every request has ended"
        return self.tally

    # What happens.

    def _send_another(self) -> None:
        if arrival := self._source.another(self.now_s):
            self._arrive(arrival)

    def _arrive(self, arrival: Arrival) -> None:
        serial = next(self._names)
        flight = Flight.of(arrival, serial, self.window.counts(serial, self.now_s))
        self._flights[flight.name] = flight
        self._coupled = self._coupled or arrival.then is not None
        self._place(flight)

    def _place(self, flight: Flight) -> None:
        """Begin a request, or go on with one whose engine failed: at the front, unless it stays where it decodes."""
        flight.is_prefill = bool(self.prefill) and flight.left > 1
        if flight.is_prefill and self.apart and (node := self._back.choose(flight.request())):
            missing = self._back.missing(flight.request(), node)
            if not self.apart.is_apart(missing, 0, SamplingParams()):
                flight.is_prefill = False
                self._submit(flight, flight.request(), node)
                self._meter.came(flight.request().num_prompt_tokens, 0)
                return
        self._find(flight, flight.request())

    def _find(self, flight: Flight, request: Request) -> None:
        if node := self._front.choose(request):
            self._meter.came(request.num_prompt_tokens, self._front.missing(request, node) + 1)
            self._submit(flight, request, node)
        else:
            self._events.at(self.now_s + RETRY_S, lambda: self._find(flight, request))

    def _submit(self, flight: Flight, request: Request, node: Node) -> None:
        try:
            node.submit(request)
        except InvalidRequestError as error:
            del self._flights[flight.name]
            self.window.tally_of(flight).rejected[str(error).split(": ", 1)[-1]] += 1
            self._events.at(self.now_s, self._send_another)

    def _take(self, node: Node, outputs: Sequence[Output]) -> None:
        """What came of a step that has just begun."""
        instance = node.instance
        ends_s = instance.device.ends_s
        if self.timeline:
            self.timeline.add(self.instances.index(instance), self.now_s, instance.free_s, instance.state)
        counted = (output for output in outputs if self._flights[output.request.request_id].counts)
        longest_s = self.tally.run(ends_s, sum(len(output.tokens) == len(ends_s) for output in counted))
        self.window.give(sum(len(output.tokens) for output in outputs))
        for request, tokens, reason in outputs:
            flight = self._flights[request.request_id]
            served = flight.served
            if tokens:
                if not served.output_tokens:
                    served.cached_tokens, served.loaded_tokens = request.num_cached or 0, instance.origins(request)
                self.window.tally_of(flight).tokens(served, instance.device.ends(len(tokens)), longest_s)
            if reason is None:
                continue
            if flight.is_prefill:
                self._events.at(served.last_s, lambda flight=flight: self._handover.begin(node, flight))  # type: ignore[misc]
            else:
                self._events.at(served.last_s, lambda flight=flight: self._end(flight))  # type: ignore[misc]

    def _end(self, flight: Flight) -> None:
        del self._flights[flight.name]
        self.window.tally_of(flight).ended(flight.served, is_task=flight.arrival.then is None)
        self._meter.ended(flight.served.output_tokens)
        if then := flight.arrival.then:
            then = then._replace(at_s=self.now_s + then.at_s)
            self._events.at(then.at_s, lambda: self._arrive(then))
        else:
            self._send_another()

    def _fail(self, outage: Outage) -> None:
        """Requests of the engine go back to the front with the tokens they have."""
        for name in self._nodes[outage.engine].fail(outage.seconds):
            flight = self._flights[name]
            self.window.tally_of(flight).retried += 1
            self._place(flight)

    # How far ahead an engine may compute.

    def _horizon(self, decodes_alone: bool) -> Callable[[], float]:
        def until() -> float:
            arrival_s = self._source.next_s
            if self._coupled:
                return min(arrival_s, self._events.next_s)
            return min(arrival_s, self._events.next_shared_s) if decodes_alone or self.scaler else arrival_s

        return until
