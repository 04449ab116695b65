"""The simulated cluster: the same schedule with and without leaps, what is counted, and what goes wrong on purpose."""

import math
import random
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.core.routing import ROUTERS, KVAware, LeastLoaded, RoundRobin
from miniserve.errors import InvalidRequestError
from miniserve.hardware.cost import Part
from miniserve.simulate.cluster import Cluster
from miniserve.simulate.outage import Outage
from miniserve.simulate.report import report
from miniserve.simulate.storage import Link
from miniserve.simulate.tier_plan import TierPlan
from miniserve.simulate.tiers import Tier
from miniserve.workloads.arrivals import Arrival, Lengths, arrival_times, drawn
from miniserve.workloads.service import SLO


def requests(number, rate, seed=0, prompts="20-300", outputs="1-60"):
    rng = random.Random(seed)
    return islice(drawn(Lengths.parse(prompts), Lengths.parse(outputs), rng, arrival_times(rate, rng)), number)


def approximately(summary):
    """Nested numbers for comparison: times are sums in another order."""
    return {
        name: pytest.approx(value, rel=1e-9) if isinstance(value, int | float) else
        {key: pytest.approx(each, rel=1e-9) for key, each in value.items()} if isinstance(value, dict) else value
        for name, value in summary.items()
    }  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_leaps_change_nothing(make, data):
    """Not even where memory is so tight that requests are preempted, or an engine fails."""
    split = data.draw(st.booleans())
    engines, fronts = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2)) if split else 0
    options = {
        "router": ROUTERS[data.draw(st.sampled_from(sorted(ROUTERS)))],
        "outages": [Outage(data.draw(st.floats(0, 0.02)), 0, 0.01)] if data.draw(st.booleans()) else [],
    }
    deployment = make(
        num_blocks=data.draw(st.integers(30, 200)), block_size=16, max_num_seqs=data.draw(st.integers(1, 20)),
        max_num_batched_tokens=data.draw(st.integers(20, 400)),
    )  # fmt: skip
    rate, seed = data.draw(st.sampled_from([50, 500, 5000])), data.draw(st.integers(0, 99))
    concurrency = data.draw(st.sampled_from([None, 3]))
    ends = []
    for leaps in (True, False):
        cluster = Cluster(
            [deployment] * engines, prefill=[deployment] * fronts, leaps=leaps,
            **options | {"router": options["router"]()},
        )  # fmt: skip
        tally = cluster.run(requests(30, rate, seed), concurrency=concurrency)
        ends.append((tally.summary(cluster.now_s), [instance.busy_s for instance in cluster.instances]))
    (with_leaps, busy), (without, busy_without) = ends
    assert with_leaps == approximately(without)
    assert busy == pytest.approx(busy_without, rel=1e-9)
    assert with_leaps["completed"] == 30


def test_one_request_takes_what_the_cost_model_says(make):
    deployment = make(block_size=16)
    cluster = Cluster([deployment])
    tally = cluster.run(iter([Arrival(5.0, 100, 4)]))
    step = deployment.step_time
    ttft = step.seconds([Part(0, 100)])
    gaps = [step.seconds([Part(start, 1)]) for start in (100, 101, 102)]
    assert tally.ttft.total == pytest.approx(ttft)
    assert tally.itl.total == pytest.approx(sum(gaps))
    assert tally.e2e.total == pytest.approx(ttft + sum(gaps))
    assert cluster.now_s == pytest.approx(5 + ttft + sum(gaps))
    assert cluster.instances[0].busy_s == pytest.approx(ttft + sum(gaps))
    assert (tally.output_tokens, tally.prompt_tokens) == (4, 100)


def test_disaggregated_kv_takes_its_time_over_the_link(make):
    deployment = make(block_size=16)
    link = Link(1e6, 0.5)
    cluster = Cluster([deployment], prefill=[deployment], make_link=lambda: link)
    tally = cluster.run(iter([Arrival(0.0, 100, 3)]))
    step = deployment.step_time
    moved = 100 * deployment.kv_token_bytes / 1e6 + 0.5
    first = moved + step.seconds([Part(100, 1)])
    assert tally.ttft.total == pytest.approx(step.seconds([Part(0, 100)]))
    assert tally.itl.most == pytest.approx(first)
    assert tally.itl.total == pytest.approx(first + step.seconds([Part(101, 1)]))
    assert link.busy_s == pytest.approx(moved - 0.5)


def test_what_the_decode_side_has_is_not_sent_again(make):
    deployment, links = make(block_size=16), []

    def link():
        links.append(Link(1e6))
        return links[-1]

    turn = Arrival(0.0, 64, 2, tuple(range(4)), 16)
    again = Arrival(1.0, 64, 2, tuple(range(4)), 16)
    Cluster([deployment], prefill=[deployment], make_link=link).run(iter([turn, again]))
    token = deployment.kv_token_bytes / 1e6
    assert links[0].busy_s == pytest.approx(64 * token + (64 - 64) * token)


def test_prefixes_are_found_where_the_router_looks_for_them(make):
    """Users who come back, and no engine that has room for all of them: taking turns scatters them."""
    shares = {}
    for router in (RoundRobin, LeastLoaded, KVAware):
        rng = random.Random(1)
        turns = sorted(
            (rng.uniform(0, 2), user, turn) for user in range(12) for turn in range(6)
        )  # fmt: skip
        arrivals = (
            Arrival(at, 160, 20, tuple(range(100 * user, 100 * user + 10)), 16) for at, user, _ in turns
        )  # fmt: skip
        cluster = Cluster([make(num_blocks=50, block_size=16)] * 4, router=router())
        shares[router] = cluster.run(arrivals).summary(1.0)["cached_share"]
    assert shares[KVAware] > 1.5 * max(shares[RoundRobin], shares[LeastLoaded])


def test_a_tier_gives_back_what_the_device_forgot(make):
    """Twenty users of ten blocks take turns on a pool for five of them."""
    arrivals = [
        Arrival(float(turn), 160, 2, tuple(range(100 * (turn % 20), 100 * (turn % 20) + 10)), 16) for turn in range(60)
    ]
    deployment = make(num_blocks=60, block_size=16)

    host = TierPlan("host", 1000 * 16 * deployment.kv_token_bytes, 1e9)
    without = Cluster([deployment]).run(iter(arrivals)).summary(1.0)
    tier = Cluster([deployment], tiers=[host]).run(iter(arrivals)).summary(1.0)
    assert without["cached_share"] == 0
    assert without["loaded_shares"] == {}
    assert tier["loaded_shares"]["host"] == pytest.approx(
        40 / 60 * 144 / 160
    )  # all full blocks but the last, from turn 2 on


def test_sessions_go_on_when_an_answer_has_come(make):
    third = Arrival(3.0, 60, 5)
    first = Arrival(1.0, 20, 5, then=Arrival(2.0, 40, 5, then=third))
    cluster = Cluster([make()] * 2)
    tally = cluster.run(iter([first]))
    assert tally.completed == 3
    assert cluster.now_s == pytest.approx(1 + 2 + 3 + tally.e2e.total)


def test_a_closed_loop_keeps_its_concurrency_and_leaves_the_warm_up_out(make):
    cluster = Cluster([make()])
    same = (Arrival(0.0, 100, 30) for _ in range(50))
    tally = cluster.run(same, concurrency=5, warmup=10)
    assert tally.completed == 40
    assert 0 < cluster.window.began_s < cluster.now_s
    assert tally.ttft.count == tally.e2e.count == 40
    assert tally.itl.count == 40 * 29


def test_outages_lose_nobody(make):
    """Every request ends with all its tokens, the ones from before the failure included."""
    deployment = make(block_size=16)
    calm = Cluster([deployment] * 2).run(requests(40, 2000)).summary(1.0)
    hit = Cluster([deployment] * 2, outages=[Outage(0.01, 0, 0.05), Outage(0.02, 1, 0.01)])
    summary = hit.run(requests(40, 2000)).summary(1.0)
    assert summary["completed"] == 40
    assert summary["retried"] > 0
    assert summary["output_tokens_per_s"] == calm["output_tokens_per_s"]
    assert summary["e2e_s"]["max"] > calm["e2e_s"]["max"]


def test_what_can_never_fit_is_counted_and_named(make):
    cluster = Cluster([make(num_blocks=4, block_size=16)])
    tally = cluster.run(iter([Arrival(0.0, 10, 5), Arrival(0.0, 500, 5)]))
    assert tally.completed == 1
    ((reason, number),) = tally.rejected.items()
    assert number == 1
    assert "the pool has 4" in reason
    assert tally.summary(1.0)["slo_attainment"] == 0.5


def test_goodput_is_of_whole_requests(make):
    met = {}
    for slo in ("ttft:1000", "ttft:0.0001", "itl:1000", "itl:0.0001", "tpot:0.0001", "e2e:0.0001"):
        cluster = Cluster([make()], slo=SLO.parse(slo))
        met[slo] = cluster.run(requests(10, 100, outputs="5")).summary(1.0)["slo_attainment"]
    assert met == {slo: float(slo.endswith(":1000")) for slo in met}


def test_a_task_is_a_whole_session(make):
    later = Arrival(1.0, 40, 5, then=Arrival(1.0, 60, 5))
    cluster = Cluster([make()], slo=SLO())
    tally = cluster.run(iter([Arrival(0.0, 20, 5, then=later), Arrival(0.0, 20, 5)]))
    assert (tally.completed, tally.tasks) == (4, 2)
    worth = report(cluster)
    assert worth["usd_per_task"] == pytest.approx(2 * worth["usd_per_request"])


def test_engines_of_two_kinds_share_the_load(make):
    cluster = Cluster([make(), make(hardware="a100-80")], router=LeastLoaded())
    tally = cluster.run(requests(60, 3000))
    fast, slow = cluster.instances
    assert tally.completed == 60
    assert 0 < fast.busy_s < slow.busy_s * 2
    assert report(cluster)["figures"].keys() >= {"h100 hyperscaler_tco"}
    with pytest.raises(InvalidRequestError, match=r"one size, not \[16, 64\]"):
        Cluster([make(), make(block_size=16)])


@pytest.mark.parametrize("engine", [-1, 3])
def test_who_is_not_there_cannot_fail(make, engine):
    message = rf"an outage of engine {engine}: there are 3 \(0: prefill 0, 1: decode 0, 2: decode 1\)"
    with pytest.raises(InvalidRequestError, match=message):
        Cluster([make()] * 2, prefill=[make()], outages=[Outage(1.0, engine, 1.0)])
    with pytest.raises(InvalidRequestError, match="outage at nan"):
        Outage(math.nan, 0, 1.0)
    with pytest.raises(InvalidRequestError, match="for -1 s"):
        Outage(1.0, 0, -1)


@pytest.mark.parametrize("number", [0, -1])
def test_nonsense_is_refused(make, number):
    with pytest.raises(InvalidRequestError, match="engines"):
        Cluster([make()] * number)
    with pytest.raises(InvalidRequestError, match="bandwidth"):
        Link(number)
    with pytest.raises(InvalidRequestError, match="room"):
        Tier("host", number)
    with pytest.raises(InvalidRequestError, match="bandwidth"):
        Link(math.inf)
