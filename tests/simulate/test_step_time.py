"""How long steps take: the operators one after another, two halves that take turns, and a busiest rank."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.cost import Part
from miniserve.hardware.shape import Experts, Parallel, Precision, Shape
from miniserve.simulate.deployment import Deployment, efficiency_for

MIXTURE = Shape(4, 256, 8, 2, 32, 512, 1000, experts=Experts(16, 2, 128))


def step_time(device="h100", ranks=4, **options):
    accelerator = load_catalog().accelerator(device)
    where = Deployment(
        accelerator, MIXTURE, Precision.of("bf16"), Parallel(1, ranks), efficiency_for(accelerator), **options
    )
    return where.step_time


def split(timer, parts):
    seconds = {True: 0.0, False: 0.0}
    for op in timer.operators(parts):
        seconds[op.kind == "all_to_all"] += timer.roofline.seconds(op)
    return seconds[False], seconds[True]


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=20))
def test_decodes_are_timed_as_any_step(starts):
    parts = [Part(start, 1) for start in starts]
    for options in ({}, {"overhead_s": 1e-3}, {"imbalance": 1.7}):
        timer = step_time(**options)
        whole = timer.overhead_s + timer.roofline.step_seconds(timer.operators(parts))
        assert timer.seconds(parts) == pytest.approx(whole)


@pytest.mark.parametrize("device", ["h100", "l4"])
@pytest.mark.parametrize("overlap", [False, True])
def test_a_run_is_its_steps(device, overlap):
    timer = step_time(device, overlap=overlap)
    run = timer.decode_run_seconds(6, 6000, 1500, 20)
    assert run == pytest.approx(np.array([timer.decode_seconds(6, 6000 + 6 * at, 1500 + at) for at in range(20)]))


@pytest.mark.parametrize("ranks", [4, 16])
def test_halves_take_turns(ranks):
    """As long as all computing or all travelling, and never longer than the two in turn; over the network, too."""
    parts = [Part(1000, 1)] * 40
    timer, plain = step_time(ranks=ranks, overlap=True), step_time(ranks=ranks)
    computing_s, travelling_s = split(plain, parts[:20])
    assert timer.seconds(parts) == pytest.approx(2 * max(computing_s, travelling_s))
    assert timer.seconds(parts) < 2 * (computing_s + travelling_s)
    prompts = [Part(0, 300), Part(0, 200)]
    halves = [split(plain, [part]) for part in prompts]
    assert timer.seconds(prompts) == pytest.approx(max(sum(times) for times in zip(*halves, strict=True)))


def test_one_request_has_no_halves():
    for part in (Part(500, 1), Part(0, 100)):
        assert step_time(overlap=True).seconds([part]) == pytest.approx(step_time().seconds([part]))


def test_the_busiest_rank_computes_and_receives_more():
    parts = [Part(1000, 1)] * 8
    even, skewed = step_time(), step_time(imbalance=1.5)
    for fair, busy in zip(even.operators(parts), skewed.operators(parts), strict=True):
        times = 1.5 if fair.kind in {"moe", "all_to_all"} else 1
        assert busy.flops == times * fair.flops
        assert busy.link_bytes == times * fair.link_bytes
        assert busy.weight_bytes == fair.weight_bytes
    assert skewed.seconds(parts) > even.seconds(parts)
