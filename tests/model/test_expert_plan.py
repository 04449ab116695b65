"""Who holds which experts: every one somebody's, the busy ones several's, and plans that cannot be are refused."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniserve.core.placement import imbalance, place
from miniserve.errors import InvalidRequestError
from miniserve.model.config import ModelConfig, MoE, Rope
from miniserve.model.expert_plan import ExpertOptions, ExpertPlan, plan_experts, read_loads

MIXED = ModelConfig(
    "llama", 100, 64, 3, 4, 4, 16, 96, 100, 1e-5, Rope(10000.0), moe=MoE(8, 2, 32, True, frozenset({1}))
)


@given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 7), st.lists(st.integers(0, 100), min_size=8, max_size=8))
def test_every_expert_has_a_rank_and_ranks_hold_no_more_than_their_slots(ranks, more, loads):
    redundant = min(ranks * more, 8 * (ranks - 1))
    plan = ExpertPlan.of(MIXED, ranks, redundant, [loads, loads])
    assert plan.layers[1] == ()
    for layer in (0, 2):
        held = plan.layers[layer]
        assert len(held) == ranks
        assert {expert for experts in held for expert in experts} == set(range(8))
        for rank, experts in enumerate(held):
            assert experts == tuple(sorted(set(experts))) == plan.held(rank)[layer]
            assert len(experts) <= (8 + redundant) // ranks
    assert set(plan.held(0)) == {0, 2}


def test_the_busy_expert_is_copied_and_busy_ones_are_apart():
    loads = [80, 10, 10, 10, 10, 10, 10, 10]
    plan = ExpertPlan.of(MIXED, 4, 4, [loads, loads])
    assert sum(0 in experts for experts in plan.layers[0]) == 4
    assert imbalance(loads, place(loads, 12, 4), 4) < imbalance(loads, place(loads, 8, 4), 4)


@pytest.mark.parametrize(
    ("changes", "ranks", "redundant", "message"),
    [
        ({"moe": None}, 2, 0, "expert_parallel: this llama model is dense, it has no experts"),
        ({"moe": MoE(8, 2, 32, True, frozenset(range(3)))}, 2, 0, "dense, it has no experts"),
        ({}, 16, 8, "8 experts are too few for 16 ranks"),
        ({}, 3, 0, "8 experts and redundant_experts 0 make 8 slots: they cannot be shared out among 3 ranks"),
        ({}, 2, 1, "8 experts and redundant_experts 1 make 9 slots: they cannot be shared out among 2 ranks"),
        ({}, 2, -2, "redundant_experts is -2: it must lie between 0 and 8"),
        ({}, 2, 10, "redundant_experts is 10: it must lie between 0 and 8"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(changes, ranks, redundant, message):
    with pytest.raises(InvalidRequestError, match=message):
        ExpertPlan.of(replace(MIXED, **changes), ranks, redundant)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("[[1", "Expecting"),
        ('{"loads": []}', "must be a JSON list of lists of numbers"),
        ('[["1"]]', "must be a JSON list of lists of numbers"),
        ("[[true]]", "must be a JSON list of lists of numbers"),
        ("[[1, 1, 1, 1, 1, 1, 1, 1]]", "it has 1 layers, the model has 2 with experts"),
        ("[[1, 1, 1, 1, 1, 1, 1, 1], [1, 2]]", "layer 2 has 2 experts in it, and 8 in the model"),
        ("[[1, 1, 1, 1, 1, 1, 1, -1], [1, 1, 1, 1, 1, 1, 1, 1]]", "layer 0 has a load that is not a number from 0"),
        ("[[1, 1, 1, 1, 1, 1, 1, NaN], [1, 1, 1, 1, 1, 1, 1, 1]]", "layer 0 has a load that is not a number"),
    ],
)
def test_a_wrong_file_of_loads_is_refused_by_name(text, message, tmp_path):
    file = tmp_path / "loads.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InvalidRequestError, match=rf"expert_loads .*loads\.json: .*{message}"):
        plan_experts(MIXED, 2, ExpertOptions(0, file))


def test_loads_come_from_a_file(tmp_path):
    loads = [[9, 1, 9, 1, 1, 1, 1, 1], [1] * 8]
    (tmp_path / "loads.json").write_text(str(loads))
    assert read_loads(tmp_path / "loads.json", MIXED) == loads
    plan = plan_experts(MIXED, 2, ExpertOptions(2, tmp_path / "loads.json"))
    assert plan == ExpertPlan.of(MIXED, 2, 2, loads) != ExpertPlan.of(MIXED, 2, 2)


def test_options_need_the_switch():
    assert ExpertOptions.of(False, 0, None) is None
    assert ExpertOptions.of(True, 2, None) == ExpertOptions(2)
    for redundant, loads in ((2, None), (0, "loads.json")):
        with pytest.raises(InvalidRequestError, match="go with expert_parallel only"):
            ExpertOptions.of(False, redundant, loads)
