"""Steps with attention and feed-forward parts apart: against a schedule of every batch and layer, event by event."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.errors import InvalidRequestError
from miniserve.hardware.afd import Sides, Way
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
        stays = replace(apart, sides=Sides(1, 1, shared_stays=True))
        assert stays.weight_bytes + stays.ffn_weight_bytes == pytest.approx(2 * shape.parameters)
        assert stays.weight_bytes - apart.weight_bytes == 2 * shape.shared_parameters


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


LPU = load_catalog().accelerator("lp30")
FP8 = Precision.of("fp8", "fp8")


def on_chips(sides, model="qwen3-30b-a3b", **options):
    """Attention on H100s, the feed-forward parts in the SRAM of LPUs; what joins them is assumed."""
    return Deployment(
        H100, shape_by_name(model), FP8, efficiency=efficiency_for(H100), sides=sides, ffn_device=LPU,
        **({"way": Way(100e9, 2e-6)} | options),
    )  # fmt: skip


def test_chips_hold_in_stages_what_one_group_of_them_cannot():
    """128 experts of 48 layers in FP8 are 29 GB: 64 chips of 500 MB hold 28.8 of them, 128 in two stages all."""
    with pytest.raises(InvalidRequestError, match=r"432 MiB a device .* 429 MiB may be used .*477 MiB.*stages"):
        _ = on_chips(Sides(2, 64)).num_blocks
    made = on_chips(Sides(2, 64, stages=2))
    assert made.num_blocks > 0
    assert made.ffn_weight_bytes == 24 * 2 * 3 * 2048 * 768
    assert list(made.devices) == [(H100, 1), (LPU, 64)]
    assert made.num_devices == 65


def test_a_lone_token_on_chips_by_hand():
    """Attention as on any H100, eight experts at 150 TB/s or 1.2 PFLOP/s, and two crossings a layer."""
    sides = Sides(1, 128)
    timer = on_chips(sides).step_time
    (turn,) = timer.turns([Part(1000, 1)])
    assert turn.away_s == pytest.approx(48 * (2 * 2e-6 + 8 * 2048 * (1 + 2) / 100e9))
    met = 128 * (1 - (1 - 8 / 128) ** 1) / 128  # of each chip's one expert
    read = 3 * met * 2048 * 768 + 8 / 128 * (2 * 2048 + 3 * 768) * 2
    computed = 6 * 8 / 128 * 2048 * 768
    assert turn.there_s == pytest.approx(48 * max(read / 150e12, computed / 1.2e15))
    assert turn.there_s < turn.away_s / 100


def test_what_joins_the_two_is_as_assumed_whatever_devices_have():
    near = deployment(TWO).step_time.turns([Part(0, 1000)])[0]
    far = deployment(TWO, way=Way(1e9)).step_time.turns([Part(0, 1000)])[0]
    assert far.away_s == pytest.approx(1000 * 8 * 2048 * 48 * (2 + 2) / 1e9)
    assert far[:2] == near[:2]


def test_each_side_passes_its_own_rows_over_its_own_network():
    """Four ranks' rows come to one device there, whose network is not the slower one."""
    h200 = load_catalog().accelerator("h200")
    turn = deployment(Sides(4, 1), ffn_device=h200).step_time.turns([Part(0, 1000)])[0]
    rows = 1000 * 8 * 2048 * 48 * (2 + 2)
    assert turn.away_s == pytest.approx(max(rows / H100.network_bandwidth, 4 * rows / h200.network_bandwidth), rel=0.2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"way": None}, "has no 'network_bandwidth_bytes_per_s'.* must be assumed .* --afd-link 100GB/s:5us"),
        ({"precision": Precision.of()}, "no dense peak for 'bf16'; it has fp8"),
    ],
)
def test_chips_say_what_they_lack(options, says):
    with pytest.raises(InvalidRequestError, match=says):
        replace(on_chips(Sides(2, 128)), **options)


def test_more_chips_than_links_join_cannot_share_a_dense_part():
    with pytest.raises(InvalidRequestError, match=r"512 devices cannot share each .* join 256; take fewer, in stages"):
        on_chips(Sides(2, 512), "llama-3.1-70b")
    assert on_chips(Sides(2, 256, stages=2), "llama-3.1-70b").num_blocks > 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"speculation": Speculation((0.8,))}, "a draft head's guesses are not modelled"),
        ({"overlap": True}, "a step in two halves is not modelled"),
        ({"sides": Sides(1, 3)}, "cannot be shared out among 3"),
        ({"sides": None, "ffn_device": H100}, "these are not apart"),
        ({"sides": None, "way": Way(1e9)}, "a way to the feed-forward parts: these are not apart"),
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
