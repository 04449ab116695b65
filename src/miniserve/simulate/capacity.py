"""How much a deployment can serve within limits: the largest closed loop that meets them, found by simulating some.

`Load` is what users ask, again and again; a `Trial` is one simulation with so many of them. Two things are taken for
granted: more users make no request faster, so that `largest` may search; and engines that are all alike, under a load
that is spread evenly, do as one of them does, so that one is simulated. Where prompts share blocks see `sessions`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, cycle, islice

from miniserve.core.routing import KVAware, LeastLoaded
from miniserve.simulate.cluster import Cluster
from miniserve.simulate.deployment import Deployment
from miniserve.simulate.storage import Link
from miniserve.simulate.tally import Tally
from miniserve.simulate.tier_plan import TierPlan
from miniserve.workloads.arrivals import Arrival
from miniserve.workloads.service import SLO

PRECISION = 20  # the largest number of users is found to within one in so many


@dataclass(frozen=True)
class Load:
    """What users ask, and what they expect.

    Args:
        requests: a user who has an answer asks the next of these, and after the last the first. Only their lengths
            count: nothing is shared, and nobody pauses.
        slo: the limits.
        attainment: share of the requests that must be within them.
        least: requests that a trial counts, at least.
    """

    requests: Sequence[Arrival]
    slo: SLO
    attainment: float = 0.95
    least: int = 128

    @property
    def shares(self) -> bool:
        """Whether prompts begin as others did."""
        return False

    @property
    def user(self) -> str:
        """What is there so many times at once."""
        return "user"

    @property
    def found(self) -> int:
        """Mean tokens of a prompt that need not be computed if nothing is ever forgotten."""
        return 0

    @property
    def prompt(self) -> int:
        """Mean tokens."""
        return round(sum(each.prompt_tokens for each in self.requests) / len(self.requests))

    @property
    def output(self) -> int:
        """Mean tokens."""
        return round(sum(each.output_tokens for each in self.requests) / len(self.requests))

    @property
    def easiest(self) -> int:
        """Tokens of the longest prompt that must be within the limits even if all shorter ones are."""
        lengths = sorted(each.prompt_tokens for each in self.requests)
        return lengths[math.ceil(self.attainment * len(lengths)) - 1]

    def warmup(self, users: int) -> int:
        """Requests after which so many have fallen out of step."""
        return 2 * users

    def counted(self, users: int) -> int:
        """Requests after these that count: two of each user, and `least`, at least."""
        return users * max(2, math.ceil(self.least / users))

    def arrivals(self, users: int) -> Iterator[Arrival]:
        """Without end. The first answers are shorter, each by another share, so that users fall out of step."""
        asked = cycle(Arrival(0.0, each.prompt_tokens, each.output_tokens) for each in self.requests)
        firsts = (
            each._replace(output_tokens=math.ceil(each.output_tokens * at / users))
            for at, each in enumerate(islice(asked, users), 1)
        )
        return chain(firsts, asked)


@dataclass(frozen=True)
class Trial:
    """What came of one simulation.

    Attributes:
        users: always so many requests at once.
        attained: share of them that met the limits.
        output_tokens_per_s: of all engines.
        latencies_s: TTFT, TPOT and E2E by the limits' names, below which the share that must be was.
        busy: of the time, by engine.
        hits: shares of the prompts' tokens whose KV was found, by where: `device`, or a tier's name.
    """

    users: int
    attained: float
    output_tokens_per_s: float
    latencies_s: dict[str, float]
    busy: dict[str, float]
    hits: dict[str, float] = field(default_factory=dict)


def try_load(
    load: Load, users: int, decode: Deployment, engines: int = 1, *,
    prefill: Deployment | None = None, prefill_engines: int = 0, link_bandwidth: float = 50e9,
    tiers: Sequence[TierPlan] = (),
) -> Trial:  # fmt: skip
    """Simulate so many users of a deployment; see `Cluster`.

    The load is kept up until all requests that count have ended. What is faster to compute is not read from a tier.

    Example:
        >>> from miniserve.simulate.build import deployment_of
        >>> from miniserve.simulate.capacity import Load, try_load
        >>> from miniserve.simulate.scenario import Engines
        >>> from miniserve.workloads.arrivals import Arrival
        >>> from miniserve.workloads.service import SLO
        >>> load = Load([Arrival(0.0, 1024, 128)], SLO.parse("ttft:1000,tpot:30"), least=16)
        >>> trial = try_load(load, users=8, decode=deployment_of("qwen3-8b", Engines("h100")))
        >>> trial.attained, f"simulated: {trial.output_tokens_per_s:.0f} tokens/s"
        (1.0, 'simulated: 998 tokens/s')
    """
    cluster = Cluster(
        [decode] * engines, router=KVAware() if load.shares else LeastLoaded(), slo=load.slo,
        prefill=[prefill or decode] * prefill_engines, make_link=lambda: Link(link_bandwidth, 1e-4),
        tiers=tiers, load_if_faster=True, prefix_caching=load.shares,
    )  # fmt: skip
    counted = load.counted(users)
    tally = cluster.run(load.arrivals(users), concurrency=users, warmup=load.warmup(users), counted=counted)
    sketches = {"ttft_s": tally.ttft, "tpot_s": tally.tpot, "e2e_s": tally.e2e}
    return Trial(
        users,
        tally.met / counted,
        # Sessions are few and unlike: what came in the time says more of the rate than the lengths of those that count.
        (cluster.window.emitted if load.shares else tally.output_tokens) / cluster.seconds if cluster.seconds else 0.0,
        {name: sketch.percentile(100 * load.attainment) for name, sketch in sketches.items()},
        cluster.utilisation,
        _hits(tally) if load.shares else {},
    )


def _hits(tally: Tally) -> dict[str, float]:
    found = {"device": tally.cached_tokens, **tally.loaded_tokens}
    return {place: tokens / max(1, tally.prompt_tokens) for place, tokens in found.items()}


def largest(
    attempt: Callable[[int], Trial], attainment: float, guess: int, most: int
) -> tuple[Trial | None, Trial | None]:
    """The trial with most users that attains its limits, and the one with fewest that was seen not to.

    Args:
        attempt: makes a trial.
        attainment: what is enough.
        guess: where to begin.
        most: where to end.

    Returns:
        None for the first: one user alone is not served well enough. None for the second: `most` are.
    """
    good: Trial | None = None
    bad: Trial | None = None
    users = min(max(1, guess), most)
    stride = max(1, users // 8)
    while True:
        trial = attempt(users)
        good, bad = (trial, bad) if trial.attained >= attainment else (good, trial)
        low, high = (good.users if good else 0), (bad.users if bad else math.inf)
        if low == most or high - low <= max(1, low // PRECISION):
            return good, bad
        if good and bad:
            users = (good.users + bad.users) // 2
        else:
            users = min(most, users + stride) if good else max(1, users - stride)
            stride *= 2
