"""`plan`: its search finds the limit, what it leaves out could not have won, and each loser is told why."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniserve.errors import InvalidRequestError
from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.shape import Parallel, Precision
from miniserve.simulate.candidates import Candidate, Lone
from miniserve.simulate.capacity import PRECISION, Load, Trial, largest, try_load
from miniserve.simulate.deployment import Deployment, efficiency_for
from miniserve.simulate.models import shape_by_name
from miniserve.simulate.plan import NEAR, Search
from miniserve.simulate.sessions import SharedLoad
from miniserve.simulate.sizes import Pool, Size, sizes, sizes_apart
from miniserve.simulate.speculation import Speculation
from miniserve.simulate.tier_plan import TierPlan
from miniserve.workloads.arrivals import Arrival
from miniserve.workloads.service import SLO


def deployment(model: str = "qwen3-8b", device: str = "h100", **limits: int) -> Deployment:
    accelerator = load_catalog().accelerator(device)
    return Deployment(
        accelerator, shape_by_name(model), Precision.of(), efficiency=efficiency_for(accelerator), **limits
    )


def load(slo: str, prompt: int = 1000, output: int = 50, least: int = 16) -> Load:
    return Load([Arrival(0.0, prompt, output)], SLO.parse(slo), least=least)


@given(limit=st.integers(0, 700), guess=st.integers(0, 900), most=st.integers(1, 600))
def test_the_search_ends_at_the_limit(limit, guess, most):
    tried = []

    def attempt(users: int) -> Trial:
        tried.append(users)
        return Trial(users, float(users <= limit), 1.0, {}, {})

    good, bad = largest(attempt, 0.95, guess, most)
    assert len(set(tried)) == len(tried) <= 24
    assert all(1 <= users <= most for users in tried)
    assert (good is None) == (limit == 0)
    assert (bad is None) == (limit >= most)
    assert bad or (good and good.users == most)
    low, high = (good.users if good else 0), (bad.users if bad else most)
    assert low <= min(limit, most) <= high
    assert high - low <= max(1, low // PRECISION)


def test_throughput_is_that_of_a_load_that_never_ends():
    """Little's law: users = rate · time. A window with everybody's arrival or departure in it would break it."""
    trial = try_load(load("ttft:9000"), 12, deployment())
    assert trial.output_tokens_per_s == pytest.approx(12 * 50 / trial.latencies_s["e2e_s"], rel=0.06)


def test_one_engine_stands_for_several():
    one, two = (try_load(load("ttft:9000"), 8 * engines, deployment(), engines) for engines in (1, 2))
    assert two.output_tokens_per_s == pytest.approx(2 * one.output_tokens_per_s, rel=0.05)


def test_groups_do_as_well_as_the_whole():
    """Two pools with a router for all of them, beside one half, twice."""
    limits, engine = load("ttft:9000", least=64), deployment()
    half, whole = (
        try_load(limits, 10 * groups, engine, groups, prefill=engine, prefill_engines=2 * groups) for groups in (1, 2)
    )
    assert whole.output_tokens_per_s == pytest.approx(2 * half.output_tokens_per_s, rel=0.05)
    assert str(Candidate("bf16", Pool(2, 2), Pool(4, 1))) == "2 × (2 × TP1 prefill + 1 × TP2 decode)"
    assert str(Candidate("bf16", Pool(1, 4), Pool(4, 1))) == "4 × TP1 prefill + 1 × TP4 decode"


def test_more_users_are_served_more_slowly():
    few, many = (try_load(load("ttft:9000"), users, deployment()) for users in (2, 40))
    assert many.latencies_s["tpot_s"] > few.latencies_s["tpot_s"]
    assert many.output_tokens_per_s > few.output_tokens_per_s


def test_what_is_ranked_attains_and_what_is_left_out_could_not_have_won():
    search = Search(deployment(), 4, load("ttft:200,tpot:8", least=8))
    outcomes = search.outcomes()
    rates = [outcome.output_tokens_per_s for outcome in outcomes]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 0
    for outcome in outcomes:
        assert outcome.reason
        if outcome.best:
            assert outcome.best.attained >= 0.95
            assert sum(outcome.share.values()) == pytest.approx(1)
        if outcome.candidate.prefill:
            at_most = search._at_most(outcome.candidate)
            assert outcome.output_tokens_per_s <= NEAR * at_most
            assert not outcome.best or (": its prefill engines" in outcome.reason) == ("TTFT is" in outcome.reason)
            assert outcome.best or NEAR * at_most < rates[0]
    assert {outcome.candidate for outcome in outcomes if not outcome.candidate.prefill} == {
        Candidate("bf16", Pool(4 // tensor, tensor)) for tensor in (1, 2, 4)
    }
    assert search.outcomes() == outcomes


def test_who_may_never_wait_for_another_prompt_needs_engines_of_their_own():
    """A step with 2,048 tokens of somebody's prompt takes longer than the limit on a gap."""
    limits = load("ttft:1000,itl:25", prompt=4000, output=20, least=8)
    best, *others = Search(deployment(), 2, limits, link_bandwidth=400e9).outcomes()
    assert best.candidate == Candidate("bf16", Pool(1, 1), Pool(1, 1))
    assert best.best
    assert best.best.users > 2
    assert all(not other.best or other.best.users == other.candidate.decode.engines for other in others)
    assert any("0% have all gaps between tokens" in other.reason for other in others)
    best, *_ = Search(deployment(), 2, load("ttft:1000,tpot:200", prompt=4000, output=20, least=8)).outcomes()
    assert best.candidate.prefill is None


def test_a_model_that_fits_nowhere_says_by_how_much():
    outcomes = Search(deployment("llama-3.1-405b"), 2, load("ttft:1000")).outcomes()
    assert [outcome.best for outcome in outcomes] == [None, None]
    assert "does not fit: weights of 756.0 GiB" in outcomes[0].reason
    assert "378.0 GiB" in outcomes[1].reason


@pytest.mark.parametrize(
    ("slo", "why"),
    [("ttft:1", "the prefill of 1,000 tokens alone takes"), ("tpot:1", "a token of one request alone takes")],
)
def test_limits_that_nothing_meets_are_refused_without_a_simulation(slo, why):
    search = Search(deployment(), 2, load(slo))
    outcomes = search.outcomes(lambda what, left: pytest.fail("something was simulated"))
    assert all(why in outcome.reason and not outcome.best for outcome in outcomes)
    assert len(outcomes) == 2
    assert 0.001 < search.least()[f"{slo[:4]}_s"] < 0.05


def test_a_limit_that_one_user_alone_exceeds_is_named():
    outcome, *_ = Search(deployment(), 1, load("ttft:1000,tpot:20,e2e:100")).outcomes()
    assert outcome.best is None
    assert outcome.reason.startswith("with one user E2E is")


def test_what_keeps_the_winner_from_more():
    seats, *_ = Search(deployment(max_num_seqs=3), 1, load("ttft:1000")).outcomes()
    assert seats.best
    assert seats.best.users == 3
    assert seats.reason == "every seat is taken: 3 requests an engine"
    small = replace(deployment(), memory_share=0.25, max_num_seqs=64)  # 20 GB, of which 16 are weights
    memory, *_ = Search(small, 1, load("ttft:500")).outcomes()
    assert "memory for the KV of" in memory.reason


def test_nonsense_is_refused():
    with pytest.raises(InvalidRequestError, match="0 devices"):
        Search(deployment(), 0, load("ttft:1000"))
    with pytest.raises(InvalidRequestError, match="bandwidth, 0 bytes/s, must be above 0"):
        Search(deployment(), 1, load("ttft:1000"), link_bandwidth=0)
    with pytest.raises(InvalidRequestError, match=r"attainment 1\.5"):
        Search(deployment(), 1, replace(load("ttft:1000"), attainment=1.5))
    with pytest.raises(InvalidRequestError, match=r"skew of 1\.2: the model has no experts"):
        Search(deployment(), 1, load("ttft:1000"), expert_skew=1.2)
    with pytest.raises(InvalidRequestError, match="no number format 'bf15'"):
        Search(deployment(), 1, load("ttft:1000"), ["bf15"]).outcomes()


def test_a_deployment_of_alike_engines_serves_so_many_times_one():
    limits = load("ttft:200,tpot:8", least=8)
    one, *_ = Search(deployment(), 1, limits).outcomes()
    pair = Candidate("bf16", Pool(2, 1))
    (two,) = (outcome for outcome in Search(deployment(), 2, limits).outcomes() if outcome.candidate == pair)
    assert two.output_tokens_per_s == pytest.approx(2 * one.output_tokens_per_s)
    assert two.best
    assert one.best
    assert two.best.users == 2 * one.best.users


def test_the_ratio_of_the_pools_is_the_one_that_could_serve_most():
    search = Search(deployment(), 6, load("ttft:200,tpot:8", prompt=3000))
    fronts, backs = search._pools("bf16")
    for chosen in search._disaggregated():
        assert chosen.prefill
        front, back = chosen.prefill.size, chosen.decode.size
        rates = [
            min(
                engines * fronts[front].prompts_per_s,
                (6 - engines * front.tensor) // back.tensor * backs[back].outputs_per_s,
            )
            for engines in range(1, 7)
            if engines * front.tensor < 6
        ]
        assert search._at_most(chosen) == pytest.approx(50 * max(rates))


def mixture(device: str = "h200", **options) -> Deployment:
    accelerator = load_catalog().accelerator(device)
    return Deployment(
        accelerator, shape_by_name("deepseek-v3"), Precision.of(), efficiency=efficiency_for(accelerator), **options
    )


def test_ranks_that_share_out_the_experts_are_candidates_too():
    assert [str(size) for size in sizes(12, shape_by_name("deepseek-v3"))] == [
        "TP1", "TP2", "TP4", "TP8", "EP2", "EP4", "EP8", "EP12"
    ]  # fmt: skip
    assert [str(size) for size in sizes(4, shape_by_name("qwen3-8b"))] == ["TP1", "TP2", "TP4"]
    assert [str(size) for size in sizes(1, shape_by_name("mixtral-8x7b"))] == ["TP1"]
    wide = Size(1, 72)
    assert wide.parallel(shape_by_name("deepseek-v3")) == Parallel(1, 72, 32)
    pool = Pool(2, *wide)
    assert (pool.all_ranks, pool.num_devices, str(pool)) == (144, 144, "2 × EP72")
    apart = Candidate("fp8", Pool(1, 1, 8), Pool(2, 1, 4))
    assert (apart.num_devices, apart.groups, str(apart)) == (16, 8, "2 × EP4 prefill + 1 × EP8 decode")


def test_a_mixture_over_two_nodes():
    """One engine of 16 ranks across two boxes is simulated by one rank; experts' skew costs users."""
    limits = load("tpot:300,ttft:9000", prompt=1000, output=20, least=8)
    even, skewed = (
        Search(mixture(max_num_seqs=8), 16, limits, ["fp8_block"], expert_skew=skew) for skew in (None, 1.2)
    )
    size = Size(1, 16)
    fair, busy = (search._engines["fp8_block", size] for search in (even, skewed))
    assert isinstance(fair, Lone)
    assert isinstance(busy, Lone)
    assert fair.deployment.imbalance == 1
    assert busy.deployment.imbalance == pytest.approx(2.46, abs=0.01)
    assert busy.decode_s > fair.decode_s
    outcome = even._simulate(Candidate("fp8_block", Pool(1, *size)))
    assert outcome.best
    assert outcome.best.users % 16 == 0
    assert outcome.reason == "every seat is taken: 8 requests a rank"
    assert outcome.share["decode: all-to-all"] > 0.03


def test_what_cannot_be_one_engine_says_why():
    accelerator = load_catalog().accelerator("h100")
    alone = replace(accelerator, figures={
        name: figure for name, figure in accelerator.figures.items() if "network" not in name
    })  # fmt: skip
    search = Search(replace(mixture(), device=alone), 16, load("ttft:9000"), ["fp8_block"])
    assert "has no 'network_bandwidth" in str(search._engines["fp8_block", Size(1, 16)])


def test_guesses_that_are_right_make_a_tighter_limit_attainable():
    """A token takes less than a step: what no engine could do alone, it can with a draft head."""
    limits = load("tpot:4.5", prompt=500, output=50, least=8)
    none, *_ = Search(deployment(), 1, limits).outcomes()
    assert none.best is None
    drafting, *_ = Search(replace(deployment(), speculation=Speculation((0.9,))), 1, limits).outcomes()
    assert drafting.best
    assert drafting.best.latencies_s["tpot_s"] <= 0.0045


def test_engines_in_two_parts_are_tried_if_asked_for():
    """Of each number of devices, the ratio and the batches with which most is decoded: none other would do more."""
    asked = load("tpot:20,ttft:2000", output=20, least=4)
    search = Search(deployment("qwen3-30b-a3b", max_num_seqs=24), 3, asked, afd=True)
    parts = {size: lone for (_, size), lone in search._engines.items() if size.ffn}
    assert [size.num_devices for size in parts] == [2, 3]
    for size, lone in parts.items():
        others = (search._engine("bf16", other) for other in sizes_apart(3) if other.num_devices == size.num_devices)
        rates = [other.deployment.sides.attention * other.outputs_per_s for other in others if isinstance(other, Lone)]
        assert lone.outputs_per_s * size.ranks == max(rates)
    outcomes = search.outcomes()
    deployments = [str(outcome.candidate) for outcome in outcomes]
    assert any("F" in name and "prefill" in name for name in deployments)  # with a pool for prompts in front
    assert any("F" in name and "prefill" not in name for name in deployments)
    assert not any(outcome.candidate.prefill and outcome.candidate.prefill.ffn for outcome in outcomes)
    assert not any(size.ffn for _, size in replace(search, afd=False)._engines)


def test_an_engine_in_two_parts_that_fits_nowhere_says_why():
    search = Search(deployment("deepseek-v3"), 2, load("tpot:20,ttft:2000"), afd=True)
    outcome = next(outcome for outcome in search.outcomes() if outcome.candidate.decode.ffn)
    assert "it does not fit: weights of" in outcome.reason


def test_names_of_sizes():
    assert [str(Size(2)), str(Size(1, 8)), str(Size(1, 3, 5, 3))] == ["TP2", "EP8", "3A+5F"]


# Where prompts share blocks.


def readers(slo: str, documents: int = 3, tokens: int = 4096, attainment: float = 0.9) -> SharedLoad:
    """Each asks one short question about one of a few documents, in turn: an LRU that holds all but one holds none."""

    def draw() -> Iterator[Arrival]:
        for number in count():
            names = tuple(1000 * (number % documents) + at for at in range(tokens // 64))
            own = 10**6 + number
            yield Arrival(0.0, tokens + 64, 8, (*names, own), 64)

    return SharedLoad.of(draw, SLO.parse(slo), attainment, 24)


def hungry(blocks: int) -> Deployment:
    """Memory for so many blocks of 64 tokens beside the weights."""
    whole = deployment(max_num_seqs=8)
    room = whole.weight_bytes + (blocks + 0.5) * 64 * whole.kv_token_bytes
    return replace(whole, memory_share=room / whole.device.memory_bytes)


def host(size: float = 1e12, bandwidth: float = 50e9) -> TierPlan:
    return TierPlan("host", size, bandwidth)


def test_a_tier_gives_back_what_the_device_forgets():
    """Three documents, room for two and a half: without a tier each is computed again."""
    search = Search(hungry(160), 1, readers("ttft:120"), stacks=[[host()]])
    outcomes = {outcome.tiers: outcome for outcome in search.outcomes()}
    without, with_it = outcomes[()], outcomes["host",]
    assert with_it.best
    assert with_it.best.hits["host"] > 0.5
    assert sum(with_it.best.hits.values()) > 0.9
    assert with_it.output_tokens_per_s > 1.5 * without.output_tokens_per_s
    assert "times as much as without" in with_it.reason or "without, not even one" in with_it.reason
    assert list(outcomes) == [("host",), ()]
    assert search.outcomes() == list(outcomes.values())


@pytest.mark.parametrize(
    ("blocks", "tier", "why"),
    [
        (2000, host(), "the device's own memory holds all that is reused"),
        (160, host(bandwidth=1e8), "loading from host is slower than computing"),
        (160, host(size=70 * 64 * 147456), "the tiers forget it before it is asked for again"),
    ],
)
def test_a_stack_that_brings_nothing_says_why(blocks, tier, why):
    search = Search(hungry(blocks), 1, readers("ttft:1000"), stacks=[[tier]])
    *_, last = (outcome for outcome in search.outcomes() if outcome.tiers)
    assert last.reason.startswith(why)


def test_nobody_reads_a_tier_where_nothing_is_shared():
    with pytest.raises(InvalidRequestError, match="nobody would read the tiers"):
        Search(deployment(), 1, load("ttft:1000"), stacks=[[host()]])
    with pytest.raises(InvalidRequestError, match="a tier's name, 'host', is taken"):
        Search(deployment(), 1, readers("ttft:1000"), stacks=[[host(), host()]])


def test_what_is_found_does_not_count_against_an_engine_before_it_is_tried():
    """The whole prompt takes longer than the limit; what is left of it does not."""
    cold = load("ttft:60", prompt=4160, output=8)
    assert "prefill of 4,160 tokens alone takes" in Search(deployment(max_num_seqs=8), 1, cold).outcomes()[0].reason
    (warm,) = Search(deployment(max_num_seqs=8), 1, readers("ttft:60")).outcomes()
    assert warm.best
    assert warm.best.hits["device"] > 0.9


def test_a_rate_is_of_what_came_in_the_time():
    """Little's law again: of a load whose prompts are found, of which not each request that got a token counts."""
    trial = try_load(readers("ttft:9000"), 6, deployment(max_num_seqs=8))
    assert trial.output_tokens_per_s == pytest.approx(6 * 8 / trial.latencies_s["e2e_s"], rel=0.15)
    assert trial.hits["device"] > 0.9


def test_the_bound_holds_where_prompts_are_found():
    """No disaggregated candidate does better than it is said to be able to; one does better than without sharing."""
    search = Search(deployment(max_num_seqs=16), 2, readers("ttft:400,tpot:30"))
    (candidate,) = set(search._disaggregated())
    rate = search._simulate(candidate).output_tokens_per_s
    assert 0 < rate <= NEAR * search._at_most(candidate)
    blind = replace(search, load=load("ttft:400,tpot:30", prompt=4160, output=8))
    assert rate > NEAR * blind._at_most(candidate)


def test_ratios_are_tried_for_all_found_and_for_nothing_found():
    """Prompts that are found need fewer engines to compute them than prompts that are not."""
    candidates = Search(deployment(), 6, readers("ttft:400,tpot:30"))._disaggregated()
    ratios = {
        one.prefill.engines for one in candidates if one.prefill and one.prefill.size == one.decode.size == Size(1)
    }
    assert len(ratios) == 2
