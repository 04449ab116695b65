"""What `miniserve plan` was given to plan for: who asks what, and which stacks of tiers to try."""

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from miniserve.cli import simulate_flags as flags
from miniserve.errors import InvalidRequestError
from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.devices import Accelerator
from miniserve.simulate.capacity import Load
from miniserve.simulate.sessions import SharedLoad, passes
from miniserve.simulate.tier_plan import TierPlan
from miniserve.tables import from_table
from miniserve.workloads.arrivals import Arrival, Lengths, drawn
from miniserve.workloads.presets import ended, preset, with_turns
from miniserve.workloads.service import SLO
from miniserve.workloads.traces import origin, read_trace

DRAWN = 1024  # requests, or as many of a trace without names of blocks: the load repeats after them
SESSIONS = 256  # of which the turns are counted that do not fit
LENGTHS = ("1024", "256")  # tokens in and out, where nothing says them


def read_load(
    trace: Path | None, workload: str | None, lengths: tuple[str | None, str | None], seed: int,
    slo: SLO, attainment: float, least: int, most: int,
) -> tuple[Load, dict[str, Any]]:  # fmt: skip
    """A load, and what it is in plain words.

    Args:
        trace, workload: a file, or a preset's name; neither: of `lengths`, in and out.
        seed: of all that is drawn.
        slo, attainment, least: of `Load`.
        most: tokens of a request that engines take: a synthetic session ends before it has more.

    Raises:
        InvalidRequestError: there are several of these, or nobody asks anything.
    """
    given = [name for name, value in (("--trace", trace), ("--workload", workload)) if value]
    given += [name for name, value in zip(("--input-len", "--output-len"), lengths, strict=True) if value and given]
    if len(given) > 1:
        raise InvalidRequestError(f"{given[0]} says what is asked: leave out {given[1]}")
    if trace:
        requests = list(read_trace(trace))
        if not requests:
            raise InvalidRequestError(f"{trace} has no requests")
        if any(each.blocks for each in requests):
            return SharedLoad.of(lambda: passes(requests), slo, attainment, least), origin(trace)
        return Load(requests[:DRAWN], slo, attainment, least), origin(trace)
    if workload:

        def sessions() -> Iterator[Arrival]:
            return (ended(first, most) for first in preset(workload, random.Random(seed)))

        load = SharedLoad.of(sessions, slo, attainment, least)
        asked = {"workload": workload, "seed": seed, "turns_left_out": _left_out(workload, seed, most)}
        return load, asked
    texts = [text or usual for text, usual in zip(lengths, LENGTHS, strict=True)]
    made = drawn(Lengths.parse(texts[0]), Lengths.parse(texts[1]), random.Random(seed))
    return Load(list(islice(made, DRAWN)), slo, attainment, least), {
        "input": texts[0],
        "output": texts[1],
        "seed": seed,
    }


def _left_out(workload: str, seed: int, most: int) -> float:
    """Of the turns of some sessions, the share that comes after their ends."""
    whole = list(islice(preset(workload, random.Random(seed)), SESSIONS))
    here = sum(1 for _ in with_turns((ended(first, most) for first in whole), SESSIONS))
    return 1 - here / sum(1 for _ in with_turns(iter(whole), SESSIONS))


def read_stacks(text: str, device: Accelerator) -> list[list[TierPlan]]:
    """`dram,dram+nvme`: stacks of tiers that the catalogue has beside a device, or as `simulate --tier` says them.

    Raises:
        InvalidRequestError: it is none. Says which part.
    """
    return [[_tier(name.strip(), device) for name in stack.split("+")] for stack in text.split(",")]


def _tier(text: str, device: Accelerator) -> TierPlan:
    if ":" in text:
        return from_table(TierPlan, flags.tier(text))
    return TierPlan.beside(load_catalog().tier(text, device))
