"""What `miniserve simulate` was given: a scenario's table, from a file, with the flags in their places.

A flag stands for a key, and overrides it. Flags about engines are of all engines, but for their number and their
devices, which are of those that prefill or of the others; where the file has several of these, it alone says.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from miniserve.errors import InvalidRequestError
from miniserve.hardware.catalog import load_catalog
from miniserve.simulate.tier_plan import TierPlan
from miniserve.tables import to_table

LOADS = ("trace", "preset", "rate", "concurrency")  # one of these says when requests come
PREFIXES = {
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "P": 1e15,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}
TIER = "NAME:SIZE:BANDWIDTH[:LATENCY][:shared], such as host:1TB:64GB/s:10us"
WAY = "BANDWIDTH[:LATENCY], such as 100GB/s:5us"
OUTAGE = "SECONDS:ENGINE:SECONDS, such as 60:0:30"


def put(table: dict[str, Any], flags: Mapping[str, Any], name: str | None = None) -> None:
    """Flags that were given, in a table, or in one of its tables."""
    given = {key: value for key, value in flags.items() if value is not None}
    if given:
        inside = table if name is None else table.setdefault(name, {})
        inside.update(given)


def put_workload(table: dict[str, Any], flags: Mapping[str, Any]) -> None:
    """As `put`; when requests come, the flags say alone, if they say anything of it."""
    workload = table.setdefault("workload", {})
    if any(flags.get(name) is not None for name in LOADS):
        for name in LOADS:
            workload.pop(name, None)
    workload.update({key: value for key, value in flags.items() if value is not None})


def put_engines(
    table: dict[str, Any], every: Mapping[str, Any], decode: Mapping[str, Any], prefill: Mapping[str, Any]
) -> None:
    """Flags about engines: of all, of those that decode, and of those for prompts alone.

    Raises:
        InvalidRequestError: it is not clear whose they are.
    """
    pools: list[dict[str, Any]] = table.setdefault("engines", [])
    if not pools:
        pools.append({})
    fronts = [pool for pool in pools if pool.get("role") == "prefill"]
    backs = [pool for pool in pools if pool.get("role") != "prefill"]
    for pool in pools:
        put(pool, dict(every))
    _put_one(backs, decode, "others than for prefill")
    if not fronts and prefill.get("number"):
        fronts = [{**backs[0], "role": "prefill"}]
        for pool in backs:
            pool["role"] = "decode"
        pools.insert(0, fronts[0])
    if not fronts and prefill.get("tensor") is not None:
        raise InvalidRequestError("--prefill-tensor-parallel-size goes with --prefill-engines")
    if fronts and prefill.get("number") == 0:
        raise InvalidRequestError("the config has engines for prefill: --prefill-engines must be 1 at least")
    _put_one(fronts, prefill, "for prefill")


def _put_one(pools: list[dict[str, Any]], flags: Mapping[str, Any], which: str) -> None:
    if len(pools) > 1 and any(value is not None for value in flags.values()):
        raise InvalidRequestError(f"the config has several [[engines]] {which}: say there how many, and of what size")
    for pool in pools:
        put(pool, flags)


def put_tiers(table: dict[str, Any], tiers: list[str]) -> None:
    """Tiers, as `tier` reads them, or as the catalogue has them beside the devices that compute prompts.

    Raises:
        InvalidRequestError: it is neither; those devices have none of that name, or are of several kinds.
    """
    names = {pool.get("hardware") for pool in table["engines"] if pool.get("role") != "decode"}
    table["tiers"] = [tier(text) if ":" in text else _preset(text, names) for text in tiers]


def _preset(name: str, hardware: set[str | None]) -> dict[str, Any]:
    devices = [load_catalog().accelerator(each) for each in hardware if each is not None]
    if len(devices) > 1:
        raise InvalidRequestError(f"engines of several kinds have several '{name}': say which as {TIER}")
    if not devices:
        raise InvalidRequestError(f"beside which hardware is the tier '{name}'? --hardware says it")
    return to_table(TierPlan.beside(load_catalog().tier(name, devices[0])))


def tier(text: str) -> dict[str, Any]:
    """A table of `TierPlan`. The bandwidth may be a catalogue device's that has a network, such as `bluefield-4`.

    Raises:
        InvalidRequestError: it is none. Says which part.
    """
    parts = text.split(":")
    shared = parts[-1] == "shared"
    parts = parts[:-1] if shared else parts
    if not 3 <= len(parts) <= 4 or not parts[0]:
        raise InvalidRequestError(f"tier '{text}' is not {TIER}")
    where = f"tier '{text}'", f"a tier is {TIER}"
    found = {"name": parts[0], "num_bytes": _quantity(parts[1], "B", where), "bandwidth": _bandwidth(parts[2], where)}
    if len(parts) == 4:
        found["latency_s"] = _quantity(parts[3], "s", where)
    return found | ({"shared": True} if shared else {})


def way(text: str) -> dict[str, float]:
    """A table of `Way`. Raises InvalidRequestError if it is none. Says which part."""
    parts = text.split(":")
    where = f"afd-link '{text}'", f"it is {WAY}"
    if len(parts) > 2:
        raise InvalidRequestError(f"{where[0]} is not {WAY}")
    found = {"bandwidth": _quantity(parts[0], "B/s", where)}
    return found | ({"latency_s": _quantity(parts[1], "s", where)} if len(parts) == 2 else {})


def outage(text: str) -> dict[str, Any]:
    """A table of `Outage`. Raises InvalidRequestError if it is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?):(\d+):(\d+(?:\.\d+)?)", text, re.ASCII)
    if not found:
        raise InvalidRequestError(f"outage '{text}' is not {OUTAGE}")
    return {"at_s": float(found[1]), "engine": int(found[2]), "seconds": float(found[3])}


def _bandwidth(text: str, where: tuple[str, str]) -> float:
    if re.match(r"[\d.]", text):
        return _quantity(text, "B/s", where)
    return load_catalog().accelerator(text).figure("network_bandwidth_bytes_per_s").value


def _quantity(text: str, unit: str, where: tuple[str, str]) -> float:
    """`1.5TB`, `64GB/s`, `10us`, or a plain number in the unit. `where`: in what, and what that is, for errors."""
    small = {"m": 1e-3, "u": 1e-6, "µ": 1e-6, "n": 1e-9} if unit == "s" else PREFIXES
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*(\D*)", text, re.ASCII if unit != "s" else 0)
    ending = found[2].removesuffix("/s" if unit == "B/s" else "") if found else ""
    prefix = ending.removesuffix("B" if unit != "s" else "s")
    if not found or prefix not in {"": 1.0, **small} or not math.isfinite(float(found[1])):
        raise InvalidRequestError(f"{where[0]}: '{text}' is no number of {unit}: {where[1]}")
    return float(found[1]) * {"": 1.0, **small}[prefix]
