"""Guesses in a simulation: how many are right, what they cost, and that the real scheduler deals with them."""

import random
from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.errors import InvalidRequestError
from miniserve.hardware.cost import Part
from miniserve.hardware.shape import Experts, Shape
from miniserve.simulate.cluster import Cluster, Outage
from miniserve.simulate.speculation import Speculation, draft_head
from miniserve.workloads.arrivals import Arrival, Lengths, arrival_times, drawn

ONE = Arrival(0.0, 100, 41)


def requests(number, rate, seed):
    rng = random.Random(seed)
    return islice(drawn(Lengths.parse("20-300"), Lengths.parse("1-60"), rng, arrival_times(rate, rng)), number)


def test_shares_by_hand():
    three = Speculation((0.8, 0.5, 0.5))
    assert three.guesses == 3
    assert three.tokens_per_step == pytest.approx(1 + 0.8 + 0.4 + 0.2)
    right = [three.right("a", position, 3) for position in range(20_000)]
    assert [right.count(number) / 20_000 for number in range(4)] == pytest.approx([0.2, 0.4, 0.2, 0.2], abs=0.01)
    assert right == [three.right("a", position, 3) for position in range(20_000)]
    assert right[:100] != [three.right("b", position, 3) for position in range(100)]
    assert max(three.right("a", position, 1) for position in range(100)) == 1


def test_always_right_and_never_right(make):
    """40 tokens after the first: 20 steps of two if a guess is always right, and 40 if it never is."""
    for share, steps in ((1.0, 20), (0.0, 40)):
        deployment = make(block_size=16, speculation=Speculation((share,)))
        cluster = Cluster([deployment])
        tally = cluster.run(iter([ONE]))
        assert tally.output_tokens == 41
        assert tally.itl.count == steps
        taken, step_time = 1 + int(share), deployment.step_time
        starts = range(100, 140, taken)
        verified = [step_time.seconds([Part(start, 2, 2)]) for start in starts[:-1]]
        # Where one token is left, nothing is guessed; where two are, one is.
        last = step_time.seconds([Part(starts[-1], 2, 2) if share else Part(139, 1)])
        assert tally.itl.total == pytest.approx(sum(verified) + last)
        assert tally.ttft.total == pytest.approx(step_time.seconds([Part(0, 100)]))


def test_a_step_costs_the_verification_and_the_head(make):
    plain = make().step_time
    drafting = make(speculation=Speculation((0.8, 0.6))).step_time
    parts = [Part(500, 3, 3)] * 4
    extra = {op.name for op in drafting.operators(parts)} - {op.name for op in plain.operators(parts)}
    assert extra == {"draft join"}
    joins = [op for op in drafting.operators(parts) if op.name == "draft join"]
    assert [(op.times, op.flops) for op in joins] == [(1, 2 * 12 * 512 * 256), (1, 2 * 4 * 512 * 256)]
    unembeddings = [op.flops for op in drafting.operators(parts) if op.name == "unembedding"]
    assert unembeddings == [2 * rows * 256 * 1000 for rows in (12, 4, 4)]
    assert drafting.seconds(parts) > plain.seconds(parts) > plain.seconds([Part(500, 1)] * 4)


def test_the_head_is_a_layer_of_the_usual_kind():
    shape = Shape(10, 64, 4, 4, 16, 256, 100, experts=Experts(8, 2, 32), dense_layers=3)
    assert (draft_head(shape).layers, draft_head(shape).sparse_layers) == (1, 1)


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_leaps_are_off_and_nobody_is_lost(make, data):
    """Tight memory, failures, two pools: all tokens come, and asking for leaps changes nothing."""
    split = data.draw(st.booleans())
    options = {
        "outages": [Outage(data.draw(st.floats(0, 0.02)), 0, 0.01)] if data.draw(st.booleans()) else [],
    }
    deployment = make(
        num_blocks=data.draw(st.integers(30, 200)), block_size=16, max_num_seqs=data.draw(st.integers(1, 20)),
        max_num_batched_tokens=data.draw(st.integers(20, 400)),
        speculation=Speculation(tuple(data.draw(st.lists(st.floats(0, 1), min_size=1, max_size=4)))),
    )  # fmt: skip
    engines, seed = data.draw(st.integers(1, 2)), data.draw(st.integers(0, 99))
    ends = []
    for leaps in (True, False):
        cluster = Cluster([deployment] * engines, prefill=[deployment] * split, leaps=leaps, **options)
        ends.append(cluster.run(requests(20, 500, seed)).summary(cluster.now_s))
    assert ends[0] == ends[1]
    assert ends[0]["completed"] == 20
    asked = sum(arrival.output_tokens for arrival in requests(20, 500, seed))
    assert cluster.tally.output_tokens == asked


def test_it_pays_where_steps_are_bound_by_memory(make):
    """One user alone: 1.8 tokens a step, each step a little longer."""
    seconds = {}
    for speculation in (None, Speculation((0.8,))):
        deployment = replace(make(block_size=16), speculation=speculation)
        seconds[speculation] = Cluster([deployment]).run(iter([ONE])).tpot.total
    alone, drafted = seconds.values()
    assert alone / 1.9 < drafted < alone / 1.1


def test_nonsense_is_refused():
    with pytest.raises(InvalidRequestError, match="at least one guess"):
        Speculation(())
    with pytest.raises(InvalidRequestError, match=r"a share of 1\.5"):
        Speculation((0.5, 1.5))
    assert Speculation.parse("0.8,0.6") == Speculation((0.8, 0.6))
    for text in ("", "often", "0.8;0.6"):
        with pytest.raises(InvalidRequestError, match="is no list of shares"):
            Speculation.parse(text)
