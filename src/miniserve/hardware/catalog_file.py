"""Reading `catalog.toml`: every entry is checked, and an error names the entry and what is wrong with it.

A figure is a bare number, which takes the `source` and `mark` of the table it stands in, or a table of its own with
`value` and whichever of `source`, `mark`, `note` and `also` differ. Nothing is guessed: an unknown key, a source that
is not listed, a missing mark, or a value no device can have is refused. Lookup and arithmetic are `devices.py`'s.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from miniserve.errors import CorruptFileError, InvalidRequestError
from miniserve.hardware.devices import Accelerator, Catalog, System, plain
from miniserve.hardware.figures import MARKS, Figure, Source, read_sources
from miniserve.hardware.memory_tiers import MemoryTier
from miniserve.tables import read_toml

#: Scalar quantities: unit, and the least and the most that is believable. A slip of a prefix falls outside.
QUANTITIES: Mapping[str, tuple[str, float, float]] = {
    "memory_bytes": ("B", 100e6, 2e12),
    "memory_bandwidth_bytes_per_s": ("B/s", 50e9, 500e12),
    "achieved_bandwidth_bytes_per_s": ("B/s", 50e9, 500e12),
    "link_bandwidth_bytes_per_s": ("B/s", 10e9, 10e12),
    "network_bandwidth_bytes_per_s": ("B/s", 1e9, 1e12),
    "link_domain": ("", 1, 100_000),
    "l2_bytes": ("B", 1e6, 1e9),
    "l3_bytes": ("B", 1e6, 1e9),
    "sram_bytes": ("B", 10e6, 2e9),
    "num_sms": ("", 1, 1000),
    "compute_capability": ("", 5, 20),
    "exp_per_s": ("/s", 1e11, 1e15),
    "tdp_w": ("W", 20, 5000),
    "all_in_power_w": ("W", 100, 10_000),
}
FORMATS = ("fp32", "tf32", "fp16", "bf16", "fp8", "int8", "fp4")
TABLES: Mapping[str, tuple[tuple[str, ...], tuple[str, float, float]]] = {
    "dense_flops": (FORMATS, ("FLOP/s", 1e12, 1e18)),
    "sparse_flops": (FORMATS, ("FLOP/s", 1e12, 1e18)),
    "achieved_flops": (FORMATS, ("FLOP/s", 1e12, 1e18)),
    "usd_per_hour": (("hyperscaler_tco", "neocloud_tco", "rental_3yr"), ("$/h", 0.05, 50)),
}
#: Of a system. What is stated for the whole is compared with the sum of the accelerators by the tests.
SYSTEM_QUANTITIES: Mapping[str, tuple[str, float, float]] = {
    "power_w": ("W", 1000, 50e6),
    "host_memory_bytes": ("B", 100e9, 1e16),
}
STATED: Mapping[str, tuple[str, float, float]] = {
    "memory_bytes": ("B", 100e9, 1e16),
    "memory_bandwidth_bytes_per_s": ("B/s", 1e12, 1e18),
    "link_bandwidth_bytes_per_s": ("B/s", 1e12, 1e17),
    **{f"{name}_flops": ("FLOP/s", 1e15, 1e20) for name in FORMATS},
}
#: Of a memory tier, all of them needed.
TIER_QUANTITIES: Mapping[str, tuple[str, float, float]] = {
    "capacity_bytes": ("B", 10e9, 1e15),
    "read_bandwidth_bytes_per_s": ("B/s", 1e9, 2e12),
    "latency_s": ("s", 1e-7, 0.1),
}
_ACCELERATOR = {"kind", "memory", "link", "source", "mark", "checked_against"}
_TEXTS = {"name", "vendor", "generation", "released"}
_LISTS = {"aliases", "notes"}
_KINDS = ("gpu", "lpu", "asic", "dpu")


def read_catalog(path: Path) -> Catalog:
    """The catalogue in the file at `path`. Raises CorruptFileError, naming the entry, for whatever is not sound."""
    raw = read_toml(path)
    try:
        return _Reader(path.name).catalog(raw)
    except InvalidRequestError as error:
        raise CorruptFileError(f"{path.name}: {error}") from None


class _Reader:
    """One pass over the parsed file; holds the sources that figures refer to."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.sources: dict[str, Source] = {}

    def catalog(self, raw: dict[str, Any]) -> Catalog:
        self.only("the file", raw, {"sources", "accelerators", "systems", "ambiguous", "tiers"})
        for section in ("sources", "accelerators", "systems"):
            if section not in raw:
                self.fail("the file", f"has no [{section}]")
        self.sources = read_sources(raw["sources"])
        accelerators = {k: self.accelerator(f"accelerators.{k}", k, v) for k, v in raw["accelerators"].items()}
        systems = {k: self.system(f"systems.{k}", k, v, accelerators) for k, v in raw["systems"].items()}
        ambiguous = {word: tuple(keys) for word, keys in raw.get("ambiguous", {}).items()}
        tiers = {k: self.tier(f"tiers.{k}", k, v, accelerators) for k, v in raw.get("tiers", {}).items()}
        catalog = Catalog(self.sources, accelerators, systems, ambiguous, tiers)
        self.names(catalog)
        return catalog

    def names(self, catalog: Catalog) -> None:
        """A name leads to one entry."""
        owners: dict[str, str] = {}
        for entry in catalog:
            for word in (entry.key, entry.name, *entry.aliases):
                if owners.setdefault(plain(word), entry.key) != entry.key:
                    self.fail(entry.key, f"the name '{word}' is also that of {owners[plain(word)]}")
        for word, keys in catalog.ambiguous.items():
            if plain(word) in owners or len(keys) < 2 or any(key not in owners.values() for key in keys):
                self.fail(f"ambiguous.{word}", "must be no entry's name, and list two entries or more by their keys")
        beside: dict[tuple[str, str], str] = {}
        for tier in catalog.tiers.values():
            for word in (tier.key, tier.kind):
                if plain(word) in owners:
                    self.fail(f"tiers.{tier.key}", f"the name '{word}' is also that of {owners[plain(word)]}")
            for key in tier.accelerators:
                if beside.setdefault((tier.kind, key), tier.key) != tier.key:
                    other = beside[tier.kind, key]
                    self.fail(f"tiers.{tier.key}", f"{key} has a '{tier.kind}' already, tiers.{other}")

    def accelerator(self, at: str, key: str, raw: dict[str, Any]) -> Accelerator:
        self.only(at, raw, _TEXTS | _LISTS | set(QUANTITIES) | set(TABLES) | _ACCELERATOR)
        if raw.get("kind") not in _KINDS:
            self.fail(at, f"kind {raw.get('kind')!r} is none of {', '.join(_KINDS)}")
        figures = self.table(at, {name: raw[name] for name in QUANTITIES if name in raw}, raw, QUANTITIES)
        tables: dict[str, Any] = {
            name: self.table(f"{at}.{name}", raw[name], raw, dict.fromkeys(allowed, limits))
            for name, (allowed, limits) in TABLES.items()
            if name in raw
        }
        return Accelerator(
            key,
            **self.texts(at, raw),
            kind=raw["kind"],
            figures=figures,
            memory=raw.get("memory", ""),
            link=raw.get("link", ""),
            checked_against=tuple(self.listed(at, key) for key in raw.get("checked_against", ())),
            **tables,
        )

    def system(self, at: str, key: str, raw: dict[str, Any], accelerators: Mapping[str, Accelerator]) -> System:
        known = {"accelerator", "num_accelerators", "link", "stated", "source", "mark"}
        self.only(at, raw, _TEXTS | _LISTS | set(SYSTEM_QUANTITIES) | known)
        if raw.get("accelerator") not in accelerators:
            self.fail(at, f"its accelerator {raw.get('accelerator')!r} is not in the catalogue")
        count = raw.get("num_accelerators")
        if not isinstance(count, int) or count < 2:
            self.fail(at, f"num_accelerators {count!r} is not a number above 1")
        quantities = {name: raw[name] for name in SYSTEM_QUANTITIES if name in raw}
        return System(
            key,
            **self.texts(at, raw),
            accelerator=accelerators[raw["accelerator"]],
            num_accelerators=count,
            figures=self.table(at, quantities, raw, SYSTEM_QUANTITIES),
            stated=self.table(f"{at}.stated", raw.get("stated", {}), raw, STATED),
            link=raw.get("link", ""),
        )

    def tier(self, at: str, key: str, raw: dict[str, Any], accelerators: Mapping[str, Accelerator]) -> MemoryTier:
        self.only(at, raw, {"kind", "name", "accelerators", "shared", "notes", "source", "mark", *TIER_QUANTITIES})
        for name in ("kind", "name", *TIER_QUANTITIES):
            if not raw.get(name):
                self.fail(at, f"has no {name}")
        beside = tuple(raw.get("accelerators", ()))
        if not beside or (strange := [one for one in beside if one not in accelerators]):
            self.fail(
                at, f"its accelerator {strange[0]!r} is not in the catalogue" if beside else "has no accelerators"
            )
        quantities = {name: raw[name] for name in TIER_QUANTITIES}
        figures = self.table(at, quantities, raw, TIER_QUANTITIES)
        shared, notes = raw.get("shared", False), tuple(raw.get("notes", ()))
        return MemoryTier(key, raw["kind"], raw["name"], beside, figures, shared, notes)

    def texts(self, at: str, raw: dict[str, Any]) -> dict[str, Any]:
        for name in sorted(_TEXTS):
            if not isinstance(raw.get(name), str) or not raw[name]:
                self.fail(at, f"has no {name}")
        return {name: raw[name] for name in _TEXTS} | {name: tuple(raw.get(name, ())) for name in _LISTS}

    def table(
        self, at: str, raw: dict[str, Any], outer: dict[str, Any], limits: Mapping[str, tuple[str, float, float]]
    ) -> dict[str, Figure]:
        """Figures by name. `source` and `mark` are the table's own, else those of the entry around it."""
        self.only(at, raw, {*limits, "source", "mark"})
        origin = {name: raw.get(name, outer.get(name)) for name in ("source", "mark")}
        return {
            name: self.figure(f"{at}.{name}", value, origin, *limits[name])
            for name, value in raw.items()
            if name in limits
        }

    def figure(self, at: str, raw: Any, origin: dict[str, Any], unit: str, least: float, most: float) -> Figure:
        fields = dict(raw) if isinstance(raw, dict) else {"value": raw}
        self.only(at, fields, {"value", "source", "mark", "note", "also"})
        value = fields.get("value")
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(at, f"value {value!r} is not a number")
        if not least <= value <= most:
            self.fail(at, f"value {value:g} {unit} is not between {least:g} and {most:g}".replace("  ", " "))
        source, mark = fields.get("source", origin["source"]), fields.get("mark", origin["mark"])
        if not source:
            self.fail(at, "has no source")
        if mark not in MARKS:
            self.fail(at, f"mark {mark!r} is none of {', '.join(MARKS)}" if mark else "has no mark")
        here = {"source": source, "mark": mark}
        also = tuple(
            self.figure(f"{at}.also[{i}]", other, here, unit, least, most)
            for i, other in enumerate(fields.get("also", ()))
        )
        return Figure(float(value), unit, self.listed(at, source), mark, fields.get("note", ""), also)

    def listed(self, at: str, source: str) -> Source:
        if source not in self.sources:
            self.fail(at, f"source {source!r} is not among [sources]")
        return self.sources[source]

    def only(self, at: str, raw: Mapping[str, Any], known: set[str]) -> None:
        if strange := sorted(set(raw) - known):
            self.fail(at, f"unknown key '{strange[0]}'; known are {', '.join(sorted(known))}")

    def fail(self, at: str, problem: str) -> NoReturn:
        raise CorruptFileError(f"{self.file}: {at}: {problem}")
