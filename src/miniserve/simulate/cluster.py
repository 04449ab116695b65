"""`Cluster`: simulated engines, a router in front of them, and what happens between them, event by event.

Aggregated: a request is computed where the router sends it. Disaggregated: its prompt and first token are computed by
an engine of the prefill pool; its KV, but for blocks that the other side has cached, goes over that engine's link; the
rest is computed by an engine of the decode pool.

Events come in order of time, and nothing here is random: the same arrivals give the same result. A step is computed
when it begins (see `Instance`). How far an engine may compute ahead of the others is its horizon: the next arrival, or
the next moment at which another engine's end could send it something.
Memory: of requests that are under way only.
"""

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from miniserve.core.request import Request
from miniserve.core.routing import LeastLoaded, RoundRobin, Router
from miniserve.core.sampling_params import Limits
from miniserve.core.scheduler import Output
from miniserve.errors import InvalidRequestError
from miniserve.simulate.deployment import Deployment
from miniserve.simulate.device import TOKEN, VirtualClock
from miniserve.simulate.instance import Connector, Instance
from miniserve.simulate.storage import Delivered, Link
from miniserve.simulate.tally import Served, Tally
from miniserve.workloads.arrivals import Arrival
from miniserve.workloads.service import SLO

RETRY_S = 1.0  # while every engine that could take a request is down


@dataclass(frozen=True)
class Outage:
    """An engine fails: what it worked on is begun again elsewhere, from the tokens that have come.

    Attributes:
        at_s: when.
        engine: its index, prefill engines first.
        seconds: until it is there again, with nothing cached.
    """

    at_s: float
    engine: int
    seconds: float


@dataclass
class _Flight:
    """A request on its way through the cluster.

    Attributes:
        served, prompt, output_tokens: what has come, and what there is.
        then: what its user asks afterwards.
        counts: it is no warm-up.
        is_prefill: it is with an engine that computes its prompt alone.
    """

    served: Served
    prompt: list[int]
    output_tokens: int
    then: Arrival | None
    counts: bool = True
    is_prefill: bool = False


@dataclass
class Cluster:
    """A simulation; `run` it once.

    Args:
        deployment: of each engine that decodes, and of all if none is for prefill alone.
        engines: how many of those.
        router: chooses among the engines that prompts go to.
        slo: what counts as good.
        prefill: of each engine for prefill alone; None: as `deployment`.
        prefill_engines: how many of those; 0: aggregated.
        decode_router: chooses where KV goes.
        make_link: what the KV of one prefill engine goes through.
        make_connector: for engines of an aggregated cluster: where KV comes from besides.
        prefix_caching: whether prompts may share blocks.
        outages: what fails.
        leaps: compute runs of alike steps at once; the result is the same.
    """

    deployment: Deployment
    engines: int
    router: Router = field(default_factory=RoundRobin)
    slo: SLO = field(default_factory=SLO)
    prefill: Deployment | None = None
    prefill_engines: int = 0
    decode_router: Router = field(default_factory=LeastLoaded)
    make_link: Callable[[], Link] = lambda: Link(50e9, 1e-4)
    make_connector: Callable[[VirtualClock], Connector] | None = None
    prefix_caching: bool = True
    outages: Sequence[Outage] = ()
    leaps: bool = True

    def __post_init__(self) -> None:
        if self.engines < 1 or self.prefill_engines < 0:
            raise InvalidRequestError(f"{self.engines} and {self.prefill_engines} engines: one must decode at least")
        self.tally, self._uncounted = Tally(self.slo), Tally(self.slo)
        self.now_s = self.began_s = 0.0
        self._counted, self._closed_s = math.inf, math.nan
        self._flights: dict[str, _Flight] = {}
        self._names = count()
        self._order = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._next: Arrival | None = None
        self._down: set[int] = set()
        self._links = [self.make_link() for _ in range(self.prefill_engines)]
        self.instances = [self._instance(at) for at in range(self.prefill_engines + self.engines)]
        self._fronts = range(self.prefill_engines or self.engines)
        self._backs = range(self.prefill_engines, len(self.instances))
        self._stepping = [False] * len(self.instances)

    def _instance(self, at: int) -> Instance:
        make: Callable[[VirtualClock], Connector] | None = self.make_connector
        name, deployment = f"engine {at}", self.deployment
        if at < self.prefill_engines:
            name, deployment, make = f"prefill {at}", self.prefill or deployment, None
        elif self.prefill_engines:
            name, make = f"decode {at - self.prefill_engines}", lambda _: Delivered()
        horizon = self._horizon(at) if self.leaps else None
        return Instance(name, deployment, horizon=horizon, prefix_caching=self.prefix_caching, make_connector=make)

    @property
    def num_devices(self) -> int:
        """All engines' together."""
        return sum(instance.deployment.num_devices for instance in self.instances)

    @property
    def seconds(self) -> float:
        """That the tally is of: from the first request that counts to the end, or to the first that counts no more."""
        return (self.now_s if math.isnan(self._closed_s) else self._closed_s) - self.began_s

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
        self._arrivals, self._closed, self._warmup = arrivals, concurrency is not None, warmup
        self._counted = math.inf if counted is None else warmup + counted
        self._coupled = self._closed or bool(self.outages)  # what ends in one engine may begin something in another
        for outage in self.outages:
            self._at(outage.at_s, lambda outage=outage: self._fail(outage))  # type: ignore[misc]
        if concurrency is None:
            self._next = next(arrivals, None)
        else:
            for _ in range(concurrency):
                self._send_another()
        steps = 0
        while (self._events or self._next) and not self._all_counted(counted):
            if self._next and (not self._events or self._next.at_s <= self._events[0][0]):
                arrival, self._next = self._next, next(self._arrivals, None)
                self.now_s = arrival.at_s
                self._arrive(arrival)
                continue
            self.now_s, _, happen = heapq.heappop(self._events)
            happen()
            steps += 1
            if progress and steps % 2000 == 0:
                progress(self.tally.completed)
        assert not any(flight.counts for flight in self._flights.values()), "every request has ended"
        return self.tally

    def _all_counted(self, counted: int | None) -> bool:
        return counted is not None and self.tally.completed + self.tally.rejected.total() >= counted

    # What happens.

    def _at(self, when_s: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when_s, next(self._order), happen))

    def _send_another(self) -> None:
        arrival = next(self._arrivals, None)
        if arrival:
            self._arrive(arrival._replace(at_s=self.now_s))

    def _arrive(self, arrival: Arrival) -> None:
        serial = next(self._names)
        if serial == self._warmup and serial:
            self.tally, self.began_s = Tally(self.slo), self.now_s
        if serial == self._counted:
            self._closed_s = self.now_s
        served, prompt = Served(arrival.at_s, arrival.prompt_tokens), prompt_of(arrival, serial)
        flight = _Flight(served, prompt, arrival.output_tokens, arrival.then)
        flight.counts = self._warmup <= serial < self._counted
        self._flights[str(serial)] = flight
        self._coupled = self._coupled or arrival.then is not None
        self._place(str(serial), flight)

    def _place(self, name: str, flight: _Flight) -> None:
        """Begin a request, or go on with one whose engine failed, at the front."""
        done = flight.served.output_tokens
        flight.is_prefill = bool(self.prefill_engines) and flight.output_tokens - done > 1
        prompt = flight.prompt + [TOKEN] * done
        limit = 1 if flight.is_prefill else flight.output_tokens - done
        self._submit(name, Request(name, prompt, Limits(limit)), self._fronts, self.router)

    def _submit(self, name: str, request: Request, pool: Sequence[int], router: Router) -> None:
        up = [at for at in pool if at not in self._down]
        if not up:
            self._at(self.now_s + RETRY_S, lambda: self._submit(name, request, pool, router))
            return
        block_size = self.instances[up[0]].deployment.block_size
        full = (request.num_prompt_tokens - 1) // block_size if self.prefix_caching else 0
        hashes = request.block_hashes(block_size, full)[:full]
        at = up[router.choose(hashes, block_size, [self.instances[each] for each in up])]
        try:
            self.instances[at].submit(request, self.now_s)
        except InvalidRequestError as error:
            tally = self.tally if self._flights.pop(name).counts else self._uncounted
            tally.rejected[str(error).split(": ", 1)[-1]] += 1
            if self._closed:
                self._at(self.now_s, self._send_another)
        else:
            self._wake(at)

    def _wake(self, at: int) -> None:
        if not self._stepping[at]:
            self._stepping[at] = True
            self._at(self.now_s, lambda: self._step(at))

    def _step(self, at: int) -> None:
        instance = self.instances[at]
        if at in self._down or not instance.has_work:
            self._stepping[at] = False
            return
        outputs = instance.step(self.now_s)
        ends_s = instance.device.ends_s
        counted = (output for output in outputs if self._flights[output.request.request_id].counts)
        longest_s = self.tally.run(ends_s, sum(len(output.tokens) == len(ends_s) for output in counted))
        for output in outputs:
            self._take_note(at, output, longest_s)
        self._at(instance.free_s, lambda: self._step(at))

    def _take_note(self, at: int, output: Output, longest_s: float) -> None:
        request, tokens, reason = output
        flight = self._flights[request.request_id]
        served, ends_s = flight.served, self.instances[at].device.ends_s
        tally = self.tally if flight.counts else self._uncounted
        if tokens:
            if not served.output_tokens:
                served.cached_tokens, served.loaded_tokens = request.num_cached or 0, request.num_loaded
            tally.tokens(served, ends_s, longest_s)
        if reason is None:
            return
        end_s = served.last_s
        if flight.is_prefill:
            self._at(end_s, lambda: self._hand_over(at, request.request_id))
        else:
            self._at(end_s, lambda: self._end(request.request_id))

    def _end(self, name: str) -> None:
        flight = self._flights.pop(name)
        (self.tally if flight.counts else self._uncounted).ended(flight.served)
        if flight.then:
            then = flight.then._replace(at_s=self.now_s + flight.then.at_s)
            self._at(then.at_s, lambda: self._arrive(then))
        elif self._closed:
            self._send_another()

    def _hand_over(self, at: int, name: str) -> None:
        """A prompt has been computed: its KV goes to where it will be decoded."""
        flight = self._flights[name]
        flight.is_prefill = False
        prompt = flight.prompt + [TOKEN] * flight.served.output_tokens
        request = Request(name, prompt, Limits(flight.output_tokens - flight.served.output_tokens))
        up = [each for each in self._backs if each not in self._down] or list(self._backs)
        size = self.deployment.block_size
        full = (len(prompt) - 1) // size if self.prefix_caching else 0
        hashes = request.block_hashes(size, full)[:full]
        to = up[self.decode_router.choose(hashes, size, [self.instances[each] for each in up])]
        missing = len(prompt) - 1 - size * self.instances[to].cached_blocks(hashes)
        num_bytes = missing * self.deployment.kv_token_bytes * self.deployment.parallel.tensor
        self._at(self._links[at].send(num_bytes, self.now_s), lambda: self._deliver(name, request, to))

    def _deliver(self, name: str, request: Request, to: int) -> None:
        connector = self.instances[to].connector
        assert isinstance(connector, Delivered), "decode engines take what is delivered"
        connector.expect(request)
        self._submit(name, request, [to], self.decode_router)

    def _fail(self, outage: Outage) -> None:
        """Requests of the engine go back to the front with the tokens they have."""
        at, instance = outage.engine, self.instances[outage.engine]
        lost = [name for name in instance.live if name in self._flights]
        instance.start()
        self._down.add(at)
        self._at(self.now_s + outage.seconds, lambda: self._down.discard(at))
        for name in lost:
            self.tally.retried += 1
            self._place(name, self._flights[name])

    # How far ahead an engine may compute.

    def _horizon(self, at: int) -> Callable[[], float]:
        def until() -> float:
            soonest = self._next.at_s if self._next else math.inf
            if self._coupled or at >= self.prefill_engines > 0:
                return min(soonest, self._events[0][0] if self._events else math.inf)
            return soonest

        return until


def prompt_of(arrival: Arrival, serial: int) -> list[int]:
    """Token ids of a prompt: alike where the names of its blocks are, and nobody else's where it has none."""
    if not arrival.blocks:
        return [2**30 + serial] * arrival.prompt_tokens
    ids: list[int] = []
    for name in arrival.blocks:
        ids += [name + 1] * arrival.block_size
    return ids[: arrival.prompt_tokens]
