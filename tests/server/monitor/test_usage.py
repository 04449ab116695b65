"""Shares of the cost: all of it, nobody's but whose it is."""

import math

from hypothesis import given
from hypothesis import strategies as st

from miniserve.server.messages import Piece
from miniserve.server.monitor.ledger import Ledger
from miniserve.server.monitor.meter import Meter
from miniserve.server.monitor.usage import shares, usage

NAMES = st.sampled_from(["a", "b", "c", "d"])
VERSIONS = st.sampled_from(["", "1", "2"])


def spend(ledger, tenant, version, seconds):
    meter = Meter()
    meter.count(Piece(0, "x", [1], finish_reason="stop", spent_s=seconds))
    ledger.enter(tenant, version, 200, meter, was_taken=True)


@given(st.lists(st.tuples(NAMES, VERSIONS, st.floats(0, 1e4)), max_size=30), st.floats(0, 1e3))
def test_shares_are_the_whole_and_each_tenant_s_own_view_says_the_same(requests, price):
    ledger = Ledger(price_per_hour=price)
    ledger._started_s -= 7200  # two hours ago
    for request in requests:
        spend(ledger, *request)
    found = usage(ledger)
    costs = {name: each["cost"] for name, each in found["tenants"].items()}
    whole = found["seconds"] / 3600 * price
    if any(seconds for *_, seconds in requests):
        assert math.isclose(math.fsum(costs.values()), whole, rel_tol=1e-6)
    else:
        assert not any(costs.values())
    for name, cost in costs.items():
        own = usage(ledger, name)["tenants"]
        assert list(own) == [name]
        assert math.isclose(own[name]["cost"], cost, rel_tol=1e-3)  # some time has passed
        assert own[name]["engine_seconds"] == found["tenants"][name]["engine_seconds"]


@given(st.dictionaries(NAMES, st.floats(1e-6, 1e6), min_size=2), NAMES, st.floats(1e-6, 1e6))
def test_who_uses_more_never_pays_a_smaller_share_nor_has_others_pay_more(spent, name, more):
    before, after = shares(spent), shares(spent | {name: spent.get(name, 0.0) + more})
    for each in spent:
        if each == name:
            assert after[each] >= before[each] - 1e-9
        else:
            assert after[each] <= before[each] + 1e-9


def test_without_a_price_there_is_no_cost_and_who_has_asked_nothing_has_used_nothing():
    assert usage(Ledger(), "new")["tenants"]["new"] == {
        "requests": {"2xx": 0, "429": 0, "499": 0, "4xx": 0, "5xx": 0},
        "prompt_tokens": 0, "cached_tokens": 0, "output_tokens": 0, "engine_seconds": 0.0,
    }  # fmt: skip
    assert usage(Ledger(price_per_hour=4.0), "new")["tenants"]["new"]["cost"] == 0.0
