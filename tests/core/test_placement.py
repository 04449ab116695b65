"""Experts on devices: the published example to the slot, and what holds whatever the loads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniserve.core.placement import copies, imbalance, packed, place
from miniserve.errors import InvalidRequestError

# github.com/deepseek-ai/EPLB, README: two layers of twelve experts, sixteen slots, four groups, two nodes, eight GPUs.
LAYERS = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
PLACED = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]


@pytest.mark.parametrize(("loads", "expected"), list(zip(LAYERS, PLACED, strict=True)))
def test_the_published_example(loads, expected):
    assert place(loads, 16, 8, groups=4, nodes=2) == expected


@given(
    loads=st.lists(st.integers(0, 1000), min_size=8, max_size=8), extra=st.integers(0, 4),
    shape=st.sampled_from([(4, 1, 1), (4, 2, 2), (4, 4, 2), (2, 2, 1), (4, 3, 2)]),
)  # fmt: skip
def test_every_expert_is_somewhere_and_devices_hold_equally_many(loads, extra, shape):
    devices, groups, nodes = shape
    if len(loads) % groups:
        with pytest.raises(InvalidRequestError, match="groups"):
            place(loads, 8, devices, groups=groups, nodes=nodes)
        return
    slots = 8 + extra * devices
    placed = place(loads, slots, devices, groups=groups, nodes=nodes)
    assert len(placed) == slots
    assert set(placed) == set(range(8))
    if groups % nodes == 0:  # a group is on one node
        half = slots // nodes
        for group in range(groups):
            members = range(group * 8 // groups, (group + 1) * 8 // groups)
            assert len({at // half for at, expert in enumerate(placed) if expert in members}) == 1
    assert placed == place(loads, slots, devices, groups=groups, nodes=nodes)


@given(loads=st.lists(st.integers(1, 1000), min_size=12, max_size=12))
def test_one_expert_too_busy_for_a_device_is_halved(loads):
    """Without copies a device may be no less busy than the busiest expert; with one a device, it may."""
    plain, more = imbalance(loads, place(loads, 12, 4), 4), imbalance(loads, place(loads, 16, 4), 4)
    assert plain + 1e-9 >= 1
    mean = sum(loads) / 4
    assert plain >= max(loads) / mean - 1e-9
    assert more <= max(plain, (mean + max(loads)) / mean) + 1e-9


def test_copies_share_and_packs_fill():
    assert copies([10, 30, 20], 5) == [0, 1, 2, 1, 2]
    assert packed([5, 1, 4, 2], 2) == [[0, 1], [2, 3]]
    assert imbalance([30, 10], [0, 0, 1, 1], 2) == pytest.approx(1.5)
    assert imbalance([0, 0], [0, 1], 2) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"slots": 3}, "3 slots for 4 experts"), ({"devices": 3}, "4 slots cannot be shared out among 3 devices"),
        ({"groups": 3}, "4 experts cannot be shared out among 3 groups"), ({"devices": 0}, "1 of each at least"),
        ({"nodes": 4}, "2 devices cannot be shared out among 4 nodes"), ({"loads": [1, 1, 1, float("nan")]}, "0 at least"),
    ],
)  # fmt: skip
def test_nonsense_is_refused(options, says):
    with pytest.raises(InvalidRequestError, match=says):
        place(**({"loads": [1, 2, 3, 4], "slots": 4, "devices": 2} | options))
