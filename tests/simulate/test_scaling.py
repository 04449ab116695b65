"""Engines that come and go while a simulated cluster serves: nothing is lost, and as many run as are needed."""

import random
from dataclasses import replace
from itertools import islice, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.core.disaggregation import Disaggregation
from miniserve.core.routing import ROUTERS, LeastLoaded
from miniserve.core.scaling import Counts, Observed
from miniserve.errors import InvalidRequestError
from miniserve.hardware.cost import Part
from miniserve.simulate.cluster import Cluster
from miniserve.simulate.outage import Outage
from miniserve.simulate.pool import State
from miniserve.simulate.rates import EngineRates
from miniserve.simulate.report import devices_on, report
from miniserve.simulate.scaling import Scaling
from miniserve.workloads.arrivals import Arrival, Lengths, arrival_times, drawn
from miniserve.workloads.service import SLO

LIMITS = SLO.parse("ttft:200,tpot:10")
QUICK = Scaling(interval_s=0.02, start_s=0.03, hold=3)


class Watch:
    """In a timeline's place: nothing computes that is off."""

    def begin(self, names):
        self.steps = 0

    def add(self, engine, begin_s, end_s, values):
        self.steps += 1
        assert self.nodes[engine].state in (State.ON, State.LEAVING)


def requests(number, rate, seed=0, prompts="600-1000", outputs="1-30"):
    rng = random.Random(seed)
    return islice(drawn(Lengths.parse(prompts), Lengths.parse(outputs), rng, arrival_times(rate, rng)), number)


def slow(make, **options):
    """An engine whose steps take some 5 ms, whatever is in them, with one prompt in each."""
    return make(block_size=16, overhead_s=0.005, max_num_batched_tokens=1024, **options)


def waves(seed=0, number=60):
    """A rush, a lull of a second in which hardly anybody comes, and a rush."""
    rush = list(requests(number, 500, seed))
    lull = [Arrival(rush[-1].at_s + 0.1 * at, 50, 5) for at in range(1, 10)]
    again = [each._replace(at_s=each.at_s + lull[-1].at_s) for each in rush]
    return iter([*rush, *lull, *again])


def cluster_of(deployment, fronts=3, backs=3, scaling=QUICK, **options):
    return Cluster(
        [deployment] * backs, prefill=[deployment] * fronts, router=LeastLoaded(), slo=LIMITS, scaling=scaling,
        **options,
    )  # fmt: skip


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_leaps_change_nothing_and_nobody_is_lost(make, data):
    """Not with engines that fail, either, nor where little memory makes requests wait."""
    deployment = slow(make, num_blocks=data.draw(st.integers(70, 200)))
    options = {
        "outages": [Outage(data.draw(st.floats(0, 0.2)), 0, 0.05)] if data.draw(st.booleans()) else [],
        "apart": Disaggregation(data.draw(st.sampled_from([0, 500]))),
        "decode_router": ROUTERS[data.draw(st.sampled_from(sorted(ROUTERS)))],
        "scaling": replace(QUICK, start_s=data.draw(st.sampled_from([0.0, 0.03])), hold=data.draw(st.integers(1, 4))),
    }
    fronts = data.draw(st.integers(0, 3))
    if not fronts:
        options["apart"] = None
    ends = []
    for leaps in (True, False):
        made = options | {"decode_router": options["decode_router"]()}
        watch = Watch()
        cluster = cluster_of(deployment, fronts, leaps=leaps, timeline=watch, **made)
        watch.nodes = cluster._nodes
        tally = cluster.run(waves(data.draw(st.just(1)), 30))
        ends.append((cluster.scaler.looks, [node.paid_s for node in cluster._nodes], tally.e2e.total))
        assert tally.completed == 69
        assert watch.steps
        assert not any(node.promised or node.instance.live for node in cluster._nodes)
    (looks, paid, seconds), (looks_without, paid_without, seconds_without) = ends
    assert [(look.wanted, look.paid) for look in looks] == [(look.wanted, look.paid) for look in looks_without]
    assert paid == pytest.approx(paid_without)
    assert seconds == pytest.approx(seconds_without)


def test_it_grows_in_a_rush_and_shrinks_in_a_lull(make):
    cluster = cluster_of(slow(make))
    cluster.run(waves())
    prefill = [look.wanted.prefill for look in cluster.scaler.looks]
    assert max(prefill) == 3
    assert 1 in prefill[prefill.index(3) :], "down in the lull"
    assert 3 in prefill[prefill.index(1, prefill.index(3)) :], "and up again"
    for look in cluster.scaler.looks:
        assert all(paid >= wanted for paid, wanted in zip(look.paid, look.wanted, strict=True))
    assert all(later.at_s - earlier.at_s == pytest.approx(0.02) for earlier, later in pairwise(cluster.scaler.looks))


def test_an_engine_serves_only_when_it_has_started(make):
    """And it is paid for from its order on."""
    never = cluster_of(slow(make), scaling=replace(QUICK, start_s=100.0))
    never.run(waves())
    busy = [each.busy_s > 0 for each in never.instances]
    assert busy == [True, False, False, True, False, False]
    assert never._nodes[1].paid_s > 0
    assert never._nodes[1].state is State.OFF, "the order was taken back in the lull, or it has not come"


def test_what_is_off_costs_nothing(make):
    deployment = slow(make)
    static, planned = cluster_of(deployment, scaling=None), cluster_of(deployment)
    reports = []
    for cluster in (static, planned):
        cluster.run(waves())
        reports.append(report(cluster))
    assert reports[0]["devices"] == devices_on(static) == 6
    assert 2 <= reports[1]["devices"] < 6
    assert reports[1]["device_hours"] == pytest.approx(reports[1]["devices"] * planned.seconds / 3600)
    usd = [each["usd_per_request"] / each["device_hours"] for each in reports]
    assert usd[0] == pytest.approx(usd[1])
    assert set(reports[1]["utilisation"]) <= {each.name for each in planned.instances}
    assert all(0 <= share <= 1 for share in reports[1]["utilisation"].values())


def test_the_simulation_ends_with_its_requests(make):
    """The planner's next look is nothing to wait for."""
    cluster = cluster_of(slow(make), scaling=replace(QUICK, interval_s=1000.0))
    cluster.run(iter([Arrival(0.0, 100, 3)]))
    assert cluster.now_s < 1
    assert not cluster.scaler.looks


def load(prompt, output, missing=None, requests=60):
    return Observed(30.0, requests, requests * prompt, requests * (missing or prompt), 0, 0, output)


def test_what_an_engine_can_do_is_the_cost_models(make):
    deployment = make(block_size=16)
    rates = EngineRates(deployment, deployment, SLO.parse("ttft:5,tpot:0.2"), 0.9)
    step = deployment.step_time
    assert rates.prompt_s(0, 100) == pytest.approx(step.seconds([Part(0, 100)]))
    chunks = [step.seconds([Part(at, 2048, 0)]) for at in (1000, 3048)] + [step.seconds([Part(5096, 1000)])]
    assert rates.prompt_s(1000, 5096) == pytest.approx(sum(chunks))
    capacity = rates(load(1000, 100, missing=400))
    service = step.seconds([Part(600, 400)])
    assert capacity.prompt_tokens_per_s == pytest.approx(400 / service * rates.busy(service))
    assert capacity.token_s <= 0.2e-3
    assert rates(load(1000, 100, requests=0)) == capacity, "in a pause, as before"


@pytest.mark.parametrize("attainment", [0.5, 0.9, 0.99])
def test_a_queue_at_its_load_keeps_the_limit(make, attainment):
    """A simulated M/M/1 with the load that `busy` allows."""
    deployment = make(block_size=16)
    rates, service = EngineRates(deployment, deployment, SLO(ttft_s=5.0), attainment), 1.0
    rho, rng = rates.busy(service), random.Random(0)
    free = now = late = 0.0
    for _ in range(50_000):
        now += rng.expovariate(rho / service)
        late += max(0.0, free - now) > 5.0 - service
        free = max(free, now) + rng.expovariate(1 / service)
    assert late / 50_000 == pytest.approx(1 - attainment, rel=0.15)
    assert rates.busy(6.0) == 0.0, "longer than the limit by itself"


def test_without_engines_for_prompts_their_time_is_in_every_token(make):
    deployment = make(block_size=16)
    apart, together = (EngineRates(deployment, front, SLO.parse("tpot:0.2")) for front in (deployment, None))
    some = load(1000, 50)
    assert together(some).seats < apart(some).seats
    assert together(some).prompt_tokens_per_s == 0


@pytest.mark.parametrize(
    "wrong", [{"interval_s": 0}, {"start_s": -1}, {"attainment": 1}, {"min_prefill": 0}, {"min_decode": 0}]
)
def test_nonsense_is_refused(make, wrong):
    with pytest.raises(InvalidRequestError, match="planner"):
        Scaling(**wrong)
    with pytest.raises(InvalidRequestError, match=r"planner between Counts\(prefill=4"):
        cluster_of(make(), scaling=Scaling(min_prefill=4))
    assert Counts(1, 2) == (1, 2)
