"""Tiers in a stack: where blocks are, what reads take, what cannot be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniserve.core.request import Request
from miniserve.core.routing import KVAware
from miniserve.core.sampling_params import Limits
from miniserve.errors import InvalidRequestError
from miniserve.hardware.catalog import load_catalog
from miniserve.simulate.cluster import Cluster
from miniserve.simulate.storage import Link
from miniserve.simulate.tier_plan import TierPlan
from miniserve.simulate.tiers import Stacks, Tier, Tiered
from miniserve.workloads.arrivals import Arrival

SIZE = 16


def filled(name, blocks):
    request = Request(name, [sum(name.encode())] * (SIZE * blocks + 1), Limits(1))
    request.num_registered = blocks
    return request


def stack(*blocks, bandwidths=(100.0, 10.0)):
    tiers = [(Tier(f"tier {at}", number), Link(bandwidth, 0.5))
             for at, (number, bandwidth) in enumerate(zip(blocks, bandwidths, strict=True))]  # fmt: skip
    return Tiered(tiers, block_size=SIZE, block_bytes=50.0, clock=lambda: 7.0), [tier for tier, _ in tiers]


def test_what_falls_out_of_one_goes_to_the_next_and_comes_back():
    tiered, (near, far) = stack(4, 3)
    old, new = filled("a", 3), filled("b", 3)
    tiered.computed(old, 0)
    tiered.computed(new, 0)
    assert (len(near), len(far)) == (4, 2)
    again = filled("a", 3)
    assert tiered.lookup(again, 0) == 3 * SIZE
    tiered.load(again, 0, 3 * SIZE)
    assert tiered.origins(again) == {"tier 0": SIZE, "tier 1": 2 * SIZE}
    assert tiered.next_s == 7 + 2 * 50 / 10 + 0.5  # the slower of two reads that go on at once
    assert len(near) == 4  # the two have moved up, and others down
    assert tiered.lookup(again, 0) == 3 * SIZE
    tiered.load(filled("a", 3), 0, 3 * SIZE)
    assert tiered.origins(again) == {"tier 0": 4 * SIZE, "tier 1": 2 * SIZE}
    assert sum(len(tier) for tier in (near, far)) == 6  # nothing is in both
    tiered.finished(again)
    tiered.load(filled("b", 1), 0, SIZE)
    assert tiered.origins(again) == {}


def test_what_is_faster_to_compute_is_not_loaded():
    """Two tiers are read at once: a block of the near one takes 1 s, of the far one 5.5 s, and of both 5.5."""
    for each_s, blocks in ((0.9, 0), (1.0, 1), (4.4, 1), (4.5, 2)):
        tiered, (near, far) = stack(4, 4, bandwidths=(100.0, 10.0))
        first, second = filled("a", 2).block_hashes(SIZE, 2)
        near.put([first])
        far.put([second])
        tiered._recompute_s = lambda start, tokens, each_s=each_s: each_s * tokens / SIZE
        assert tiered.lookup(filled("a", 2), 0) == blocks * SIZE
        tiered._recompute_s = None
        assert tiered.lookup(filled("a", 2), 0) == 2 * SIZE


def test_a_gap_ends_a_prefix():
    tiered, (near, _) = stack(4, 1)
    tiered.computed(filled("a", 4), 0)
    hashes = filled("a", 4).block_hashes(SIZE, 4)
    del near._blocks[hashes[1]]
    assert tiered.lookup(filled("a", 4), 0) == SIZE
    assert tiered.lookup(filled("a", 4), 2 * SIZE) == 2 * SIZE


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 5)), max_size=30), st.integers(1, 9), st.integers(1, 9)
)
def test_together_they_hold_what_was_used_last(fills, near, far):
    """The nearest has just the blocks that were used last; none holds more than it may."""
    tiered, tiers = stack(near, far)
    used = {}
    for name, blocks in fills:
        request = filled(name, blocks)
        tiered.computed(request, 0)
        for block in request.block_hashes(SIZE, blocks):
            used.pop(block, None)
            used[block] = None
    assert len(tiers[0]) == min(near, len(used))
    assert len(tiers[1]) <= far
    assert list(tiers[0]._blocks) == list(used)[-near:]


def sessions(number=60, users=20, blocks=10):
    names = [tuple(range(100 * user, 100 * user + blocks)) for user in range(users)]
    return iter([Arrival(float(turn), SIZE * blocks, 2, names[turn % users], SIZE) for turn in range(number)])


def test_a_stack_serves_what_no_tier_alone_could(make):
    deployment = make(num_blocks=60, block_size=SIZE)
    block = SIZE * deployment.kv_token_bytes
    near, far = TierPlan("host", 100 * block, 1e9), TierPlan("flash", 180 * block, 1e8, 1e-3)
    found = {}
    for plans in ((), (near,), (far,), (near, far)):
        summary = Cluster([deployment], tiers=plans).run(sessions()).summary(1.0)
        found[tuple(plan.name for plan in plans)] = sum(summary["loaded_shares"].values())
    assert found[()] == found["host",] == found["flash",] == 0  # each evicts, just before, what comes next
    assert found["host", "flash"] == pytest.approx(40 / 60 * 144 / 160)


def test_a_shared_tier_serves_whoever_asks(make):
    """Three engines in turn, so that nobody sees a user again before the fourth visit."""
    deployment = make(num_blocks=30, block_size=SIZE)
    shares = {}
    for shared in (False, True):
        plan = TierPlan("context", 1e9, 1e9, shared=shared)
        tally = Cluster([deployment] * 3, tiers=[plan]).run(sessions(40, 20))
        shares[shared] = tally.summary(1.0)["loaded_shares"].get("context", 0)
    assert shares[True] == pytest.approx(20 / 40 * 144 / 160)
    assert shares[False] == 0


def test_tiers_speed_up_what_prefill_engines_compute(make):
    deployment = make(num_blocks=60, block_size=SIZE)
    plan = TierPlan("host", 1e9, 1e12)
    cluster = Cluster([deployment], prefill=[deployment], tiers=[plan])
    assert cluster.run(sessions()).summary(1.0)["loaded_shares"]["host"] == pytest.approx(40 / 60 * 144 / 160)


def test_what_the_catalogue_has_beside_a_device_grows_with_the_engine(make):
    """Its own memory, twice, behind two links; of a shared one all engines' part behind its own links."""
    catalog = load_catalog()
    dram = TierPlan.beside(catalog.tier("dram", catalog.accelerator("h100")))
    assert (dram.name, dram.per_device, dram.shared) == ("dram", True, False)
    own = dram.of(2, 8)
    assert (own.num_bytes, own.bandwidth, own.latency_s) == (500e9, 111.2e9, dram.latency_s)
    shared = TierPlan("cmx", 16e12, 10e9, shared=True, per_device=True).of(2, 8)
    assert (shared.num_bytes, shared.bandwidth) == (128e12, 20e9)
    said = TierPlan("host", 1e12, 1e9)
    assert said.of(2, 8) is said
    pair = make(num_blocks=60, block_size=SIZE, tensor=2)
    block = SIZE * pair.kv_sent_bytes
    connector = Stacks([TierPlan("context", 5 * block, 1e9, shared=True, per_device=True)], num_devices=6).connector(
        pair, lambda: 0.0
    )
    assert connector
    ((tier, link),) = connector._stack
    assert (tier.num_blocks, link.bandwidth) == (30, 2e9)


def test_a_router_is_told_what_lies_in_the_tiers_too(make):
    """Blocks that the device has dropped; the question leaves no trace."""
    tiered, (near, far) = stack(2, 2)
    tiered.computed(filled("a", 4), 0)
    hashes = filled("a", 4).block_hashes(SIZE, 4)
    before = list(near._blocks), list(far._blocks)
    assert tiered.held(hashes) == 4
    assert tiered.held([*hashes[:1], *filled("b", 1).block_hashes(SIZE, 1), *hashes[1:]]) == 1
    assert (list(near._blocks), list(far._blocks)) == before
    deployment = make(num_blocks=60, block_size=SIZE)
    cluster = Cluster([deployment] * 3, tiers=[TierPlan("host", 1e9, 1e9)], router=KVAware())
    found = cluster.run(sessions(40, 20)).summary(1.0)
    assert 0.3 < found["loaded_shares"]["host"] == pytest.approx(20 / 40 * 144 / 160 - found["cached_share"])


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (TierPlan("host", 0, 1e9), "'host' has 0 bytes"),
        (TierPlan("host", 10, 1e9), "'host' has 10 bytes: not one KV block"),
        (TierPlan("host", float("nan"), 1e9), "has nan bytes"),
        (TierPlan("host", 1e9, 0), "a link's bandwidth, 0 bytes/s"),
        (TierPlan("host", 1e9, 1e9, -1), "latency, -1 s"),
        (TierPlan("device", 1e9, 1e9), "'device', is taken"),
    ],
)
def test_what_is_no_tier_says_why(make, plan, message):
    with pytest.raises(InvalidRequestError, match=message):
        Cluster([make(num_blocks=30)], tiers=[plan])


def test_names_and_sizes_must_agree(make):
    plan = TierPlan("host", 1e9, 1e9, shared=True)
    with pytest.raises(InvalidRequestError, match="'host', is taken"):
        Stacks([plan, plan])
    with pytest.raises(InvalidRequestError, match="shared by engines whose KV blocks are"):
        Cluster([make(num_blocks=30), make(num_blocks=30, weights="fp8", kv="fp8")], tiers=[plan])
