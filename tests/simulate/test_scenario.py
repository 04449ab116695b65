"""Scenarios as files: what is written is what is read, and what cannot be says which key it is."""

import tomllib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.errors import InvalidRequestError
from miniserve.simulate.build import cluster_of, run
from miniserve.simulate.outage import Outage
from miniserve.simulate.report import report
from miniserve.simulate.scenario import Engines, Scenario, Transfer, Workload
from miniserve.simulate.tier_plan import TierPlan

positive = st.floats(1e-3, 1e15)
some_engines = st.builds(
    Engines, st.text(max_size=5), st.integers(1, 99), st.just("both"), st.integers(1, 8),
    kv=st.none() | st.text(max_size=3), expert_skew=st.none() | st.floats(0, 2), overlap=st.booleans(),
    draft_acceptance=st.none() | st.just("0.8,0.5"), overhead_ms=st.floats(0, 9), max_num_seqs=st.integers(1, 9),
)  # fmt: skip
scenarios = st.builds(
    Scenario, st.text(max_size=9), st.lists(some_engines, min_size=1, max_size=3).map(tuple),
    st.builds(Workload, preset=st.none() | st.text(max_size=3), rate=st.none() | positive, seed=st.integers(0, 9)),
    prefix_caching=st.none() | st.booleans(), link=st.builds(Transfer, positive, positive),
    tiers=st.lists(st.builds(TierPlan, st.text(max_size=3), positive, positive, positive, st.booleans()), max_size=2).map(tuple),
    outages=st.lists(st.builds(Outage, positive, st.integers(0, 3), positive), max_size=2).map(tuple),
    slo=st.none() | st.just("ttft:500"),
)  # fmt: skip


@settings(max_examples=50)
@given(scenarios)
def test_what_is_written_is_read(scenario):
    assert Scenario.from_table(scenario.to_table()) == scenario
    assert Scenario.from_table(tomllib.loads(scenario.to_toml())) == scenario


PLAIN = {"model": "llama-3.1-8b", "engines": [{"hardware": "h100"}]}


def changed(**keys):
    return {**PLAIN, **keys}


def engines(**keys):
    return changed(engines=[{"hardware": "h100", **keys}])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (changed(model_="x"), "unknown key 'model_'; did you mean 'model'"),
        (changed(zzz=1), "unknown key 'zzz'; there is model, engines, "),
        (engines(numbers=2), r"unknown key 'engines\[0\].numbers'; did you mean 'number'"),
        (changed(workload={"concurrencies": 3}), "unknown key 'workload.concurrencies'; did you mean 'concurrency'"),
        ({"engines": []}, "'model' is missing"),
        (changed(engines=[{"number": 1}]), r"'engines\[0\].hardware' is missing"),
        (engines(number="two"), r"'engines\[0\].number' is 'two': it must be a whole number"),
        (engines(number=2.5), "is 2.5: it must be a whole number"),
        (engines(number=True), "is True: it must be a whole number"),
        (engines(number=0), "number of engines is 0"),
        (engines(overhead_ms=-1), "overhead_ms of engines is -1"),
        (changed(prefill_from=64), "prefill_from is 64"),
        (engines(expert=0), "expert of engines is 0"),
        (engines(role="dekode"), "the role 'dekode' of engines is not one of both, prefill, decode"),
        (engines(role="prefill"), "the roles here are: prefill"),
        (changed(engines=[]), "the roles here are: none"),
        (changed(engines={"hardware": "h100"}), r"must be a list of tables, \[\[engines\]\]"),
        (changed(workload=[1]), r"must be a table, \[workload\]"),
        (changed(prefix_caching="yes"), "must be true or false"),
        (changed(router="best"), "router 'best' is not one of"),
        (changed(slo="ttft:0"), "SLO 'ttft:0'"),
        (changed(workload={"rate": 1, "concurrency": 2}), "not rate and concurrency"),
        (changed(workload={"preset": "rag", "trace": "x"}), "not trace and preset"),
        (changed(workload={"requests": 0}), "requests of a workload is 0"),
        (changed(workload={"trace": "x", "speed": 0.0}), "speed of a trace is 0"),
        (changed(outages=[{"at_s": 1, "engine": 0, "seconds": -2}]), "for -2.0 s"),
    ],
)  # fmt: skip
def test_what_is_no_scenario_says_which_key(table, message):
    with pytest.raises(InvalidRequestError, match=message):
        Scenario.from_table(table)


TIER = {"name": "host", "num_bytes": 1e12, "bandwidth": 1e9}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (changed(model="llama-70b"), "near it: "),
        (engines(hardware="h1000"), "h1000"),
        (engines(weights="fp5"), "fp5"),
        (changed(model="llama-3.1-405b"), "it does not fit: weights of"),
        (engines(expert=2), "expert parallelism needs a model with experts"),
        (engines(expert_skew=1.2), "an expert skew of 1.2: the model has no experts"),
        (engines(draft_acceptance="0.8,2"), "a share of 2.0"),
        (engines(draft_acceptance="most"), "'most' is no list of shares"),
        (changed(price="ebay"), "no price 'ebay'"),
        (changed(link={"bandwidth": 0}, engines=[{"hardware": "h100", "role": "prefill"}, {"hardware": "h100", "role": "decode"}]),
         "a link's bandwidth, 0.0 bytes/s"),
        (changed(tiers=[TIER]), "nobody would read the tiers"),
        (changed(workload={"preset": "chat"}, tiers=[TIER | {"num_bytes": 0}]), "'host' has 0.0 bytes"),
        (changed(workload={"preset": "chat"}, tiers=[TIER | {"bandwidth": 0}]), "a link's bandwidth"),
        (changed(workload={"preset": "chat"}, tiers=[TIER, TIER]), "'host', is taken"),
        (changed(outages=[{"at_s": 1, "engine": 1, "seconds": 2}]), r"outage of engine 1: there are 1 \(0: engine 0\)"),
        (changed(engines=[{"hardware": "h100"}, {"hardware": "h100", "block_size": 16}]), "blocks on need them of one size"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_says_why(table, message):
    with pytest.raises(InvalidRequestError, match=message):
        cluster_of(Scenario.from_table(table))


def test_pools_tiers_and_an_outage_in_one():
    """Two kinds of devices prefill, two decode; a shared tier behind a small one; an engine fails."""
    scenario = Scenario(
        "llama-3.1-8b",
        (Engines("h100", role="prefill"), Engines("a100-80", role="prefill"), Engines("h100", 2, role="decode")),
        Workload(preset="chat", rate=4.0, requests=12),
        router="kv-aware",
        tiers=(TierPlan("host", 200e6, 25e9), TierPlan("context", 1e12, 10e9, 1e-4, shared=True)),
        outages=(Outage(20.0, 0, 1.0),),
    )
    cluster = run(scenario)
    found = report(cluster)
    assert [instance.name for instance in cluster.instances] == ["prefill 0", "prefill 1", "decode 0", "decode 1"]
    assert found["tasks"] == 12 < found["completed"]
    assert found["hit_shares"]["context"] > 0  # what the engine that failed had lost, the others' tier still has
    assert sum(found["hit_shares"].values()) < 1
    assert report(run(replace(scenario))) == found
    calm = report(run(replace(scenario, outages=())))
    assert "context" not in calm["hit_shares"]


def mixture(**keys):
    """DeepSeek-V3 on 16 ranks that share out its experts."""
    engines = Engines("h200", expert=16, weights="fp8_block", **keys)
    return Scenario("deepseek-v3", (engines,), Workload(concurrency=64, input="256", output="16", requests=64))


def test_ranks_that_share_out_experts():
    found = report(run(mixture()))
    assert found["devices"] == len(found["utilisation"]) == 16
    assert all(0 < share <= 1 for share in found["utilisation"].values())
    skewed, drafting = report(run(mixture(expert_skew=1.2))), report(run(mixture(draft_acceptance="0.9")))
    assert skewed["tpot_s"]["mean"] > 1.05 * found["tpot_s"]["mean"]
    assert drafting["tpot_s"]["mean"] < 0.8 * found["tpot_s"]["mean"]


def test_short_prompts_stay_where_they_decode():
    """With the rule of the real fleet: the link is for long ones, and nobody's time to a token gets longer by it."""
    pools = (Engines("h100", role="prefill"), Engines("h100", role="decode"))
    lengths = {"input": "100-2000", "output": "20"}
    scenario = Scenario("llama-3.1-8b", pools, Workload(rate=4.0, requests=60, **lengths))
    busy = {}
    for limit in (None, 0, 1000, 10**6):
        cluster = run(replace(scenario, prefill_from=limit))
        assert cluster.tally.completed == 60
        busy[limit] = cluster.instances[0].busy_s
    assert busy[None] == busy[0] > busy[1000] > busy[10**6] == 0
