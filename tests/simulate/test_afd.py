"""Steps with attention and feed-forward parts apart: against a schedule of every batch and layer, event by event."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.errors import InvalidRequestError
from miniserve.hardware.afd import Sides
from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.cost import Part
from miniserve.hardware.shape import Parallel, Precision
from miniserve.simulate.build import run
from miniserve.simulate.deployment import Deployment, efficiency_for
from miniserve.simulate.models import shape_by_name
from miniserve.simulate.report import report
from miniserve.simulate.scenario import Engines, Scenario, Workload
from miniserve.simulate.speculation import Speculation

H100 = load_catalog().accelerator("h100")
TWO = Sides(2, 2)


def deployment(sides=TWO, model="qwen3-30b-a3b", device="h100", **options):
    where = load_catalog().accelerator(device)
    return Deployment(
        where, shape_by_name(model), Precision.of(), Parallel(options.pop("tensor", 1)), efficiency_for(where),
        sides=sides, **options,
    )  # fmt: skip


def scheduled_s(turns, layers):
    """When the last batch is back from the last layer, each device doing one thing at a time, in turn."""
    here_free = there_free = 0.0
    back = [0.0] * len(turns)
    for _ in range(layers):
        for at, turn in enumerate(turns):
            here_free = max(here_free, back[at]) + turn.here_s / layers
            there_free = max(there_free, here_free + turn.away_s / 2 / layers) + turn.there_s / layers
            back[at] = there_free + turn.away_s / 2 / layers
    return max(back)


@settings(max_examples=60, deadline=None)
@given(
    each=st.integers(1, 200), context=st.integers(1, 30_000), batches=st.integers(1, 6),
    attention=st.integers(1, 8), ffn=st.sampled_from([1, 2, 4, 8]),
    model=st.sampled_from(["qwen3-30b-a3b", "llama-3.1-8b"]),
)  # fmt: skip
def test_equal_batches_take_as_long_as_their_schedule(each, context, batches, attention, ffn, model):
    timer = deployment(Sides(attention, ffn, batches), model).step_time
    parts = [Part(context, 1)] * (each * batches)
    ends_s = timer.here.step_seconds(timer._ends(parts))
    expected = ends_s + scheduled_s(timer.turns(parts), timer.shape.layers)
    assert timer.seconds(parts) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.builds(Part, st.integers(0, 8000), st.integers(1, 400), st.just(1)), min_size=1, max_size=12))
def test_unequal_batches_nearly_so(parts):
    """The formula leaves out waiting that comes of batches that differ: never more than the schedule, nearly as long."""
    timer = deployment().step_time
    ends_s = timer.here.step_seconds(timer._ends(parts))
    expected = ends_s + scheduled_s(timer.turns(parts), timer.shape.layers)
    assert 0.75 * expected <= timer.seconds(parts) <= expected * 1.02


def test_decodes_in_one_way_and_in_the_other_take_equally_long():
    timer = deployment(overhead_s=1e-3).step_time
    parts = [Part(700, 1)] * 96
    assert timer.decode_seconds(96, 96 * 700, 700) == pytest.approx(timer._step_s(parts))


def test_a_run_of_steps_is_its_steps():
    timer = deployment().step_time
    run_s = timer.decode_run_seconds(30, 30_000, 1200, 40)
    each = [timer.decode_seconds(30, 30_000 + 30 * at, 1200 + at) for at in range(40)]
    assert run_s == pytest.approx(each)


def test_batches_that_take_turns_hide_each_others_way():
    """With one batch a side waits for the other; with three, the step takes little more than its busier side alone."""
    parts = [Part(4000, 1)] * 384
    alone, three = (deployment(Sides(2, 2, batches)).step_time.seconds(parts) for batches in (1, 3))
    turn = deployment(Sides(2, 2, 1)).step_time.turns(parts)[0]
    assert alone > turn.here_s + turn.there_s + turn.away_s > 1.2 * turn.here_s
    assert turn.here_s < three < 1.08 * turn.here_s


def test_work_counts_every_device_once():
    timer = deployment(Sides(3, 2), tensor=2).step_time
    parts = [Part(500, 1)] * 12
    kinds = {}
    for op, seconds in timer.work(parts):
        kinds[op.kind] = kinds.get(op.kind, 0.0) + seconds
    turns = timer.turns(parts)
    here_s = sum(turn.here_s for turn in turns) + timer.here.step_seconds(timer._ends(parts))
    assert sum(kinds.values()) == pytest.approx(2 * here_s + 2 / 3 * sum(turn.there_s for turn in turns))
    assert kinds["moe"] == pytest.approx(2 / 3 * sum(turn.there_s for turn in turns))


def test_the_two_sides_weights_are_the_models():
    for model in ("qwen3-30b-a3b", "llama-3.1-8b", "deepseek-v3"):
        shape = shape_by_name(model)
        apart = deployment(Sides(1, 1), model)
        assert apart.weight_bytes + apart.ffn_weight_bytes == pytest.approx(2 * shape.parameters)


def test_attention_has_more_room_for_kv_without_the_experts():
    whole = replace(deployment(), sides=None)
    assert deployment(TWO).num_blocks > 1.5 * whole.num_blocks


def test_devices_that_are_shared_count_by_their_share():
    part = deployment(Sides(4, 2), tensor=2)
    assert part.num_devices == 2.5
    scenario = Scenario(
        "qwen3-30b-a3b", (Engines("h100", afd="4x2", tensor=2),), Workload(concurrency=8, requests=16, output="8")
    )
    cluster = run(scenario)
    assert (len(cluster.instances), report(cluster)["devices"]) == (4, 10)


def test_devices_of_two_kinds_are_paid_for_and_joined_by_the_network():
    engines = Engines("h100", afd="1x1", ffn_hardware="h200")
    found = report(run(Scenario("qwen3-30b-a3b", (engines,), Workload(concurrency=4, requests=8, output="8"))))
    assert {name.split()[0] for name in found["figures"]} == {"h100", "h200"}
    near = deployment(Sides(1, 1)).step_time.turns([Part(0, 1000)])[0]
    far = deployment(Sides(1, 1), ffn_device=load_catalog().accelerator("h200")).step_time.turns([Part(0, 1000)])[0]
    rows = 1000 * 8 * 2048 * 48 * (2 + 2)
    assert far.away_s == pytest.approx(rows / H100.network_bandwidth, rel=0.2)
    assert near.away_s < far.away_s / 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"speculation": Speculation((0.8,))}, "a draft head's guesses are not modelled"),
        ({"overlap": True}, "a step in two halves is not modelled"),
        ({"sides": Sides(1, 3)}, "cannot be shared out among 3"),
        ({"sides": None, "ffn_device": H100}, "these are not apart"),
    ],
)
def test_what_does_not_go_together_is_refused(options, says):
    with pytest.raises(InvalidRequestError, match=says):
        deployment(**({"sides": TWO} | options))


def test_ranks_that_share_out_the_experts_and_devices_for_these_are_refused():
    with pytest.raises(InvalidRequestError, match="shared out among those"):
        replace(deployment(None), parallel=Parallel(1, 2), sides=Sides(1, 1))


def test_feed_forward_parts_that_do_not_fit_are_refused():
    with pytest.raises(InvalidRequestError, match="a device for the feed-forward parts, of which"):
        _ = deployment(Sides(8, 1), "deepseek-v3").num_blocks
