"""The steady state against a simulation of every request, and against its own definition."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniserve.errors import InvalidRequestError
from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.shape import Parallel, Precision
from miniserve.simulate.capacity import Load, try_load
from miniserve.simulate.deployment import Deployment, efficiency_for
from miniserve.simulate.models import shape_by_name
from miniserve.simulate.speculation import Speculation
from miniserve.simulate.steady import Lengths, Steady
from miniserve.workloads.arrivals import Arrival
from miniserve.workloads.service import SLO

LENGTHS = Lengths(1024, 256)


def engine(**options):
    device = load_catalog().accelerator("h100")
    return Deployment(
        device, shape_by_name("llama-3.1-8b"), Precision.of("bf16"), efficiency=efficiency_for(device), **options
    )


@pytest.mark.parametrize("acceptance", [None, Speculation((0.8, 0.6))])
@pytest.mark.parametrize("fronts", [0, 3])
def test_it_is_what_a_simulation_of_each_request_comes_to(fronts, acceptance):
    where, users = engine(speculation=acceptance), 24
    found = Steady(where, LENGTHS, where if fronts else None).at(users)
    load = Load([Arrival(0.0, *LENGTHS)], SLO(), attainment=0.5, least=96)
    trial = try_load(load, users, where, prefill=where, prefill_engines=fronts)
    # Together, prompts and tokens share steps, and the weights that these read; with guesses the median user is a
    # little faster than the mean one. Apart, some users wait for their prompts and do not decode.
    assert 0.96 <= trial.output_tokens_per_s / (users * found.speed) <= (1.01 if fronts else 1.08)
    assert 0.96 <= 1 / trial.latencies_s["tpot_s"] / found.speed <= (1.01 if fronts and not acceptance else 1.08)


@pytest.mark.parametrize("apart", [False, True])
def test_as_many_users_as_keep_the_speed_and_no_more(apart):
    where = engine()
    service = Steady(where, LENGTHS, where if apart else None)
    for speed in (20, 60, 100):
        users = service.within(speed).users
        assert service.at(users).speed >= speed
        assert users == service.room or service.at(users + 1).speed < speed
    assert service.within(0).users == service.room
    assert service.within(1.01 * service.at(1).speed) is None


def test_prompts_apart_take_devices_and_no_time_from_tokens():
    where = engine()
    together, apart = Steady(where, LENGTHS), Steady(where, LENGTHS, where)
    assert apart.at(16).speed > together.at(16).speed
    # Both do the same work: with as many users, a token costs as many device-seconds.
    assert apart.at(16).output_per_s == pytest.approx(together.at(16).output_per_s)
    assert 0 < apart.at(16).prefill_share == pytest.approx(together.at(16).prefill_share)


def test_both_devices_of_a_tensor_parallel_prefill_count():
    one, two = engine(), engine(parallel=Parallel(tensor=2))
    assert Steady(one, LENGTHS, two).prompt_device_s == pytest.approx(2 / Steady(two, LENGTHS)._back.prompts_per_s)


def test_all_tokens_of_an_output():
    assert Lengths(8192, 1024).total_per_output == 9


def test_a_request_without_tokens_is_refused():
    with pytest.raises(InvalidRequestError, match="a token at least"):
        Steady(engine(), Lengths(0, 256))


@given(prompt=st.integers(2, 20_000), output=st.integers(1, 500), found=st.floats(0, 1))
def test_what_is_found_costs_no_time_and_all_of_its_memory(prompt, output, found):
    cold = Steady(engine(), Lengths(prompt, output))
    warm = Steady(engine(), Lengths(prompt, output), found=found)
    # Where little is missing, less of it may make a chunk that is a little slower.
    assert warm.prompt_device_s <= 1.02 * cold.prompt_device_s
    assert warm.room == cold.room
    assert warm.step_s(3) == cold.step_s(3)


def test_a_share_that_is_none_is_refused():
    with pytest.raises(InvalidRequestError, match=r"found is 1\.2"):
        Steady(engine(), LENGTHS, found=1.2)
