"""Numbers that a text quotes: each is read where it stands, in `results/`, the catalogue or what others published.

A path is a list. Its first step is a results file's name, "published" (`simulate/published.toml`) or "catalog"; the
rest lead into the data: a key, an index, or a table of values that picks the rows of a list which have them all. In the
catalogue a path is an entry, a quantity, and perhaps "also" with an index, for what another source says. A path that
leads nowhere, or to two places, is an error with the path in it. What numbers prove is not judged here; `claims` says
what a claim needs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miniserve.errors import InvalidRequestError
from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.devices import Catalog
from miniserve.hardware.figures import Figure
from miniserve.notebook.results import Label, Measurement, load_results
from miniserve.notebook.units import format_value
from miniserve.simulate.published import FILE as PUBLISHED_FILE
from miniserve.tables import read_toml

Step = str | int | Mapping[str, Any]
Route = Sequence[Step]
CATALOG, PUBLISHED = "catalog", "published"
COUNT = "num_accelerators"  # of a system: no figure with a mark, but part of what it is
PICKS = {"": None, "least": min, "most": max}


@dataclass(frozen=True)
class Number:
    """One number of a text: `of`, or the ratio `of` / `over`.

    Attributes:
        of: the path to it.
        over: the path to what it is divided by; empty for the number itself.
        unit: as in `format_value`; "%" shows a fraction of one as a percentage. The catalogue's own if left out.
        pick: "least" or "most" of the places where `of` leads; without it there must be one.
    """

    of: Route
    over: Route = ()
    unit: str = ""
    pick: str = ""


@dataclass
class Shelf:
    """The results of a folder and a catalogue; a file is read once."""

    results: Path
    catalog: Catalog = field(default_factory=load_catalog)
    _read: dict[str, Measurement] = field(default_factory=dict)
    _published: dict[str, Any] = field(default_factory=dict)

    def text(self, number: Number) -> str:
        """The number as it is shown. Raises InvalidRequestError for a path that leads nowhere, or a missing unit."""
        value, unit = self.value(number), number.unit
        if not unit and not number.over and number.of[0] == CATALOG:
            unit = self._figure(number.of).unit
        if not unit and number.of[0] != CATALOG:
            raise InvalidRequestError(f"{_shown(number.of)}: has no unit; give one, or 'plain' for a bare number")
        return format_value(100 * value if unit == "%" else value, "" if unit == "plain" else unit)

    def value(self, number: Number) -> float:
        """The number itself."""
        found, pick = self._values(number.of), PICKS[number.pick]
        value = pick(found) if pick else _one(found, number.of)
        return value / _one(self._values(number.over), number.over) if number.over else value

    def label(self, number: Number) -> Label:
        """What kind of number it is; both sides of a ratio must be of one kind."""
        kinds = {self._label(path) for path in (number.of, number.over) if path}
        if len(kinds) > 1:
            raise InvalidRequestError(f"{_shown(number.of)}: its two sides are {' and '.join(sorted(kinds))}")
        return kinds.pop()

    def origin(self, path: Route) -> str:
        """Where a path leads, in words: the file with device and date, the entry with its mark, or the publication."""
        if path[0] == CATALOG:
            return f"catalogue: {path[1]}" + ("" if path[2] == COUNT else f", {self._figure(path).mark}")
        if path[0] == PUBLISHED:
            return self._publisher(path)
        return f"results/{path[0]}.json, {self._file(path).provenance}"

    def _label(self, path: Route) -> Label:
        return "claimed" if path[0] in (CATALOG, PUBLISHED) else self._file(path).label

    def _start(self, path: Route) -> Any:
        """What the steps after the first lead into."""
        if path[0] != PUBLISHED:
            return self._file(path).data
        if not self._published:
            self._published = read_toml(PUBLISHED_FILE)
        return self._published

    def _publisher(self, path: Route) -> str:
        """A link to the source named nearest to where the path leads."""
        place, key = self._start(path), ""
        for step in path[1:]:
            place = _follow(place, step, path)[0]
            key = place.get("source", key) if isinstance(place, Mapping) else key
        source = self._published["sources"][key]
        return f"[{source['title']}]({source['url']}), {source['publisher']}, {source['date']}"

    def _file(self, path: Route) -> Measurement:
        name = str(path[0])
        if name not in self._read:
            self._read[name] = load_results(name, self.results)
        return self._read[name]

    def _values(self, path: Route) -> list[float]:
        if path[0] == CATALOG:
            system = self.catalog.systems.get(str(path[1]))
            return [system.num_accelerators if system and path[2] == COUNT else self._figure(path).value]
        found: list[Any] = [self._start(path)]
        for step in path[1:]:
            found = [inner for each in found for inner in _follow(each, step, path)]
        if strange := [each for each in found if isinstance(each, bool) or not isinstance(each, int | float)]:
            raise InvalidRequestError(f"{_shown(path)}: {str(strange[0])[:40]!r} is not a number")
        return [float(each) for each in found]

    def _figure(self, path: Route) -> Figure:
        if len(path) not in (3, 5) or (len(path) == 5 and (path[3] != "also" or not isinstance(path[4], int))):
            raise InvalidRequestError(f"{_shown(path)}: a path into the catalogue is entry, quantity [, 'also', index]")
        entries = {entry.key: entry for entry in (*self.catalog, *self.catalog.tiers.values())}
        if path[1] not in entries:
            raise InvalidRequestError(f"{_shown(path)}: the catalogue has no entry {path[1]!r}")
        figures: dict[str, Figure] = dict(entries[str(path[1])].all_figures())
        if path[2] not in figures:
            raise InvalidRequestError(f"{_shown(path)}: {path[1]} has no {path[2]!r}; it has {', '.join(figures)}")
        figure = figures[str(path[2])]
        if len(path) == 3:
            return figure
        if not 0 <= int(str(path[4])) < len(figure.also):
            raise InvalidRequestError(f"{_shown(path)}: {len(figure.also)} other sources give this number")
        return figure.also[int(str(path[4]))]


def _follow(place: Any, step: Step, path: Route) -> list[Any]:
    if isinstance(step, Mapping) and isinstance(place, list):
        rows = [row for row in place if isinstance(row, Mapping) and step.items() <= row.items()]
        if not rows:
            raise InvalidRequestError(f"{_shown(path)}: no row has {dict(step)}")
        return rows
    if isinstance(step, str) and isinstance(place, Mapping) and step in place:
        return [place[step]]
    if isinstance(step, int) and isinstance(place, list) and 0 <= step < len(place):
        return [place[step]]
    there = ", ".join(map(str, place)) if isinstance(place, Mapping) else f"a {type(place).__name__}"
    raise InvalidRequestError(f"{_shown(path)}: no {step!r} there; there is {there[:200]}")


def _one(found: list[float], path: Route) -> float:
    if len(found) != 1:
        raise InvalidRequestError(f"{_shown(path)}: leads to {len(found)} numbers; say more, or pick one")
    return found[0]


def _shown(path: Route) -> str:
    return " > ".join(str(dict(step)) if isinstance(step, Mapping) else str(step) for step in path)
