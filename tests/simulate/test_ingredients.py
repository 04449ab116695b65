"""What a service is made of: the best engine at each speed, what it is worth by the catalogue, one ingredient's gain."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from miniserve.errors import InvalidRequestError
from miniserve.hardware import catalog as module
from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.catalog_file import read_catalog
from miniserve.hardware.efficiency import load_efficiencies
from miniserve.simulate.ingredients import BORROWED, Recipe, borrowed, gains, times_better, worth
from miniserve.simulate.models import shape_by_name
from miniserve.simulate.published import load_published
from miniserve.simulate.steady import Lengths

CATALOG = load_catalog()
GB300, H200 = CATALOG.accelerator("gb300"), CATALOG.accelerator("h200")


def recipe(**options):
    defaults = {"device": H200, "shape": shape_by_name("deepseek-r1"), "lengths": Lengths(1024, 512)}
    return Recipe("a service", **{**defaults, **options})


def test_the_claims_arithmetic():
    claim = load_published()[0].claim
    cost, energy = times_better(GB300, H200, claim.tokens_per_s[0] / claim.tokens_per_s[1])
    assert (round(cost, 1), round(energy, 1)) == (35.4, 54.9)


def test_another_price_in_the_catalogue_is_another_result(tmp_path):
    text = Path(module.__file__).with_name("catalog.toml").read_text(encoding="utf-8")
    assert text.count("hyperscaler_tco = { value = 2.652,") == 1
    path = tmp_path / "catalog.toml"
    path.write_text(text.replace("hyperscaler_tco = { value = 2.652,", "hyperscaler_tco = { value = 5.304,"))
    dearer = read_catalog(path).accelerator("gb300")
    assert worth(dearer, 1000).usd_per_million == pytest.approx(2 * worth(GB300, 1000).usd_per_million)
    assert worth(dearer, 1000).per_megawatt == worth(GB300, 1000).per_megawatt
    assert times_better(dearer, H200, 60)[0] == pytest.approx(times_better(GB300, H200, 60)[0] / 2)


def test_what_has_no_price_has_no_cost():
    rubin = CATALOG.accelerator("rubin")
    assert worth(rubin, 1000) == (None, None)
    with pytest.raises(InvalidRequestError, match="lacks a price"):
        times_better(rubin, GB300, 2)


@pytest.mark.parametrize("speed", [20, 60])
def test_the_best_engine_beats_all_others_and_keeps_the_speed(speed):
    service = recipe(acceptance=(0.8,))
    best = service.best(speed)
    others = [found for each in service.services.values() if (found := each.within(speed))]
    assert best.found.output_per_s == max(found.output_per_s for found in others)
    assert best.found.speed >= speed
    assert service.services[best.engine].within(speed) == best.found


def test_nobody_is_faster_than_the_fastest():
    service = recipe()
    assert service.best(0.999 * service.fastest)
    assert service.best(1.001 * service.fastest) is None


def test_engines_keep_within_reach():
    assert all(each.decode.parallel.num_devices <= 16 for each in recipe(reach=16).services.values())
    wide = recipe(device=GB300, reach=72, weights="nvfp4").services
    assert wide["EP72"].decode.parallel.held(shape_by_name("deepseek-r1").experts) == 4
    assert all(each.prefill.num_devices <= 8 for each in recipe(apart=True).services.values())


def test_a_dense_model_has_no_expert_parallelism():
    dense = recipe(shape=shape_by_name("llama-3.1-70b"), weights="fp8")
    assert set(dense.services) == {"TP1", "TP2", "TP4", "TP8"}


@pytest.mark.parametrize("apart", [False, True])
def test_a_model_that_nothing_holds_is_refused(apart):
    with pytest.raises(InvalidRequestError, match="no engine of up to 1 NVIDIA H200"):
        recipe(reach=1, apart=apart).best(1)


def test_kernels_are_borrowed_where_there_are_none_and_only_there():
    curves, hopper = borrowed(GB300).curves, load_efficiencies()["h100"].curves
    assert all(curves[kind] == hopper[kind] for kind in BORROWED)
    assert curves["moe"] == load_efficiencies()["b200"].curves["moe"] != hopper["moe"]


def test_gains_are_each_ingredients_own():
    plain = recipe()
    steps = [plain, replace(plain, reach=32), replace(plain, reach=32, acceptance=(0.8, 0.6))]
    first, *rest = gains(steps, 20)
    whole = steps[-1].best(20).found.output_per_s / plain.best(20).found.output_per_s
    assert first == 1
    assert math.prod(rest) == pytest.approx(whole)
    fast = 1.2 * plain.fastest
    assert gains([plain, steps[-1]], fast)[1] == math.inf
    assert math.isnan(gains([plain, plain], fast)[1])
