"""Offers: prices come from the catalogue and nowhere else, and like is put beside like."""

from dataclasses import replace

import pytest

from miniserve.errors import InvalidRequestError
from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.efficiency import IDEAL
from miniserve.hardware.shape import Parallel
from miniserve.simulate.capacity import Load, largest, try_load
from miniserve.simulate.choice import Service, offers
from miniserve.simulate.money import usd_per_million
from miniserve.simulate.steady import Lengths
from miniserve.workloads.arrivals import Arrival
from miniserve.workloads.service import SLO

SERVICE = Service("qwen3-8b", "fp8", Lengths(2000, 200), 20, (Parallel(), Parallel(tensor=2)))
KEYS = ("h200", "mi355x", "tpu7x", "trainium3")


def devices(h200_usd: float | None = None) -> list:
    found = [load_catalog().accelerator(key) for key in KEYS]
    if h200_usd is not None:
        price = replace(found[0].usd_per_hour["hyperscaler_tco"], value=h200_usd)
        found[0] = replace(found[0], usd_per_hour={"hyperscaler_tco": price})
    return found


def test_a_price_in_the_catalogue_decides_the_cost_and_what_would_be_fair():
    usual, dearer = offers(SERVICE, devices(1.0)), offers(SERVICE, devices(3.0))
    assert dearer["h200"].usd_per_million == pytest.approx(3 * usual["h200"].usd_per_million)
    fair = [row["tpu7x"].fair_price(row["h200"]) for row in (usual, dearer)]
    assert fair[1] == pytest.approx(3 * fair[0])


def test_no_price_is_made_up_and_no_timing():
    found = offers(SERVICE, devices())
    assert list(found) == list(KEYS)
    for key in ("tpu7x", "trainium3"):
        assert found[key].usd_per_hour is None
        assert found[key].least_usd_per_million is None
        assert found[key].reach(found["h200"]) is None
    assert found["mi355x"].timed is None
    assert found["mi355x"].usd_per_million is None
    with pytest.raises(InvalidRequestError, match="no price of a NVIDIA H200"):
        found["h200"].fair_price(found["tpu7x"])


def test_at_the_fair_price_and_at_its_reach_a_device_costs_the_same():
    found = offers(SERVICE, devices())
    h200, mi355x = found["h200"], found["mi355x"]
    rate = mi355x.bound.output_per_s
    assert usd_per_million(mi355x.fair_price(h200), rate) == pytest.approx(h200.least_usd_per_million)
    slower = rate * mi355x.reach(h200)
    assert usd_per_million(mi355x.usd_per_hour, slower) == pytest.approx(h200.usd_per_million)


def test_the_roofline_is_a_bound():
    h200 = load_catalog().accelerator("h200")
    assert SERVICE.on(h200, IDEAL).output_per_s > SERVICE.on(h200).output_per_s
    assert offers(replace(SERVICE, model="deepseek-v3"), [h200])["h200"].bound is None


def test_the_best_split_is_the_best_of_those_that_fit():
    h200 = load_catalog().accelerator("h200")
    large = replace(SERVICE, model="llama-3.1-405b")
    assert large.on(h200) is None
    splits = tuple(Parallel(tensor=n) for n in (1, 2, 4, 8))
    rates = [found.output_per_s for n in range(4) if (found := replace(large, splits=splits[n : n + 1]).on(h200))]
    assert len(rates) < 4
    assert replace(large, splits=splits).on(h200).output_per_s == max(rates)
    assert replace(large, splits=splits, speed=10_000).on(h200) is None


@pytest.mark.parametrize(("prompt", "output", "speed"), [(2000, 100, 50), (8000, 50, 33)])
def test_it_is_near_a_simulation_with_limits(prompt, output, speed):
    service = Service("qwen3-8b", "fp8", Lengths(prompt, output), speed, (Parallel(),))
    h200 = load_catalog().accelerator("h200")
    short = service.on(h200)
    load = Load([Arrival(0.0, prompt, output)], SLO(tpot_s=1 / speed), least=16)
    engine = service.engine(h200, Parallel()).decode
    good, _ = largest(lambda users: try_load(load, users, engine), load.attainment, short.users, 512)
    assert short.output_per_s == pytest.approx(good.output_tokens_per_s, rel=0.15)


@pytest.mark.parametrize("wrong", [{"model": "qwen3-9b"}, {"weights": "fp7"}])
def test_what_no_device_could_serve_is_an_error(wrong):
    with pytest.raises(InvalidRequestError, match=r"qwen3-9b|fp7"):
        replace(SERVICE, **wrong)
