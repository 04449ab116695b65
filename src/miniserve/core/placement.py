"""Which device holds which experts of a mixture: copies of the busy ones, and loads that come out nearly even.

Given each expert's load, some experts get more than one slot, and slots are shared out so that devices, and before
them nodes, are about equally busy (DeepSeek's expert-parallel load balancer, github.com/deepseek-ai/EPLB). Where
experts come in groups that tokens are routed to as a whole, a group stays on one node. Two steps make it: `copies`
always doubles the expert whose copies have most to do, and `packed` gives the next-largest load to the least loaded
device that has room. Neither is the best there is; both are fast, and the same for the same loads.
"""

from collections.abc import Sequence

from miniserve.errors import InvalidRequestError


def place(loads: Sequence[float], slots: int, devices: int, *, groups: int = 1, nodes: int = 1) -> list[int]:
    """The expert in every slot of one layer, device by device.

    Args:
        loads: of each expert, measured in any unit.
        slots: on all devices together; those above the number of experts are for copies.
        devices: each has as many slots; as many of them are on each node.
        groups: of as many experts each, in their order. Where nodes do not divide them, they are not looked at.
        nodes: on which devices are.

    Raises:
        InvalidRequestError: one does not divide the other, or there are fewer slots than experts.

    Example:
        >>> from miniserve.core.placement import imbalance, place
        >>> loads = [10, 1, 1, 1, 1, 2]
        >>> place(loads, slots=8, devices=2)
        [0, 0, 3, 4, 0, 5, 1, 2]
        >>> round(imbalance(loads, [0, 0, 3, 4, 0, 5, 1, 2], devices=2), 3)
        1.083
    """
    _check(loads, slots, devices, groups, nodes)
    if groups % nodes:
        groups = nodes = 1
    size = len(loads) // groups
    members = [range(at * size, (at + 1) * size) for at in range(groups)]
    found: list[int] = []
    for node in packed([sum(loads[each] for each in group) for group in members], nodes):
        experts = [expert for group in node for expert in members[group]]
        held = copies([loads[expert] for expert in experts], slots // nodes)
        share = [loads[experts[at]] / held.count(at) for at in held]
        found += [experts[held[slot]] for device in packed(share, devices // nodes) for slot in device]
    return found


def copies(loads: Sequence[float], slots: int) -> list[int]:
    """The expert in each slot: first every one, then copies, each of the one whose copies have most to do now."""
    held, counts = list(range(len(loads))), [1] * len(loads)
    for _ in range(slots - len(loads)):
        busiest = max(range(len(loads)), key=lambda expert: loads[expert] / counts[expert])
        held.append(busiest)
        counts[busiest] += 1
    return held


def packed(loads: Sequence[float], packs: int) -> list[list[int]]:
    """Items shared out, as many to each pack: the largest first, to the pack with the least that has room."""
    room = len(loads) // packs
    if room == 1:
        return [[item] for item in range(packs)]
    found: list[list[int]] = [[] for _ in range(packs)]
    sums = [0.0] * packs
    for item in sorted(range(len(loads)), key=lambda item: -loads[item]):
        least = min((pack for pack in range(packs) if len(found[pack]) < room), key=lambda pack: sums[pack])
        found[least].append(item)
        sums[least] += loads[item]
    return found


def imbalance(loads: Sequence[float], placement: Sequence[int], devices: int) -> float:
    """The busiest device's load as a multiple of the mean; copies of an expert share its load."""
    share = [loads[expert] / placement.count(expert) for expert in placement]
    each = len(placement) // devices
    sums = [sum(share[first : first + each]) for first in range(0, len(placement), each)]
    return max(sums) * devices / sum(sums) if sum(sums) else 1.0


def _check(loads: Sequence[float], slots: int, devices: int, groups: int, nodes: int) -> None:
    if min(devices, groups, nodes) < 1 or len(loads) < 1:
        raise InvalidRequestError(
            f"{len(loads)} experts in {groups} groups on {devices} devices of {nodes} nodes: 1 of each at least"
        )
    if any(not load >= 0 for load in loads):
        raise InvalidRequestError("an expert's load is 0 at least")
    if slots < len(loads):
        raise InvalidRequestError(f"{slots} slots for {len(loads)} experts: each needs one")
    for name, count, parts, among in (
        ("experts", len(loads), groups, "groups"), ("slots", slots, devices, "devices"),
        ("devices", devices, nodes, "nodes"),
    ):  # fmt: skip
        if count % parts:
            raise InvalidRequestError(f"{count} {name} cannot be shared out among {parts} {among}")
