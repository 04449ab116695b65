"""What accelerators and systems are said to do, each number with its source and its mark, and a catalogue of them.

Peaks are dense, links and networks are counted in one direction, bytes and FLOP/s are plain (80e9, not 80 GB). What a
system has as a whole is its accelerators' sum, computed here; what its maker prints for the whole is kept beside it, as
`stated`. An absent number is an error that names the device and what it has: no format stands in for another.
No number is here: `catalog_file.py` reads and checks them. Torch-free.
"""

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from miniserve.errors import InvalidRequestError

Mark = Literal["measured", "vendor", "analyst", "secondary", "preliminary"]
#: What a mark says of a number. The first letter, as a capital, is its short form.
MARKS: Mapping[Mark, str] = {
    "measured": "timed, or reported by the device itself, and published by who ran it",
    "vendor": "stated by the maker, for a product that ships",
    "analyst": "a model or an estimate of an analyst",
    "secondary": "found with third parties only",
    "preliminary": "stated or reported ahead of shipment, and may change",
}


@dataclass(frozen=True)
class Source:
    """Where numbers were read. `via`: the page that quotes the original, where the original itself was not read."""

    key: str
    title: str
    publisher: str
    url: str
    date: str
    via: str = ""


@dataclass(frozen=True)
class Figure:
    """One number. `also` has what other sources say of the same quantity, where they differ."""

    value: float
    unit: str
    source: Source
    mark: Mark
    note: str = ""
    also: tuple["Figure", ...] = ()

    @property
    def letter(self) -> str:
        """The mark in one letter: M, V, A, S or P."""
        return self.mark[0].upper()

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest value any source gives; for a study that must hold for both."""
        values = [self.value, *(other.value for other in self.also)]
        return min(values), max(values)


@dataclass(frozen=True)
class Accelerator:
    """One chip, or one package that software sees as one device.

    `figures` has the scalar quantities by name (`memory_bytes`, `tdp_w`, …); the tables `dense_flops`, `sparse_flops`
    and `achieved_flops` have FLOP/s by number format (operations for integers); `usd_per_hour` has prices by kind.
    `checked_against`: second sources that were compared, and agree but for what `Figure.also` and `notes` say.
    """

    key: str
    name: str
    vendor: str
    generation: str
    kind: str
    released: str
    figures: Mapping[str, Figure]
    dense_flops: Mapping[str, Figure] = field(default_factory=dict)
    sparse_flops: Mapping[str, Figure] = field(default_factory=dict)
    achieved_flops: Mapping[str, Figure] = field(default_factory=dict)
    usd_per_hour: Mapping[str, Figure] = field(default_factory=dict)
    memory: str = ""
    link: str = ""
    aliases: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    checked_against: tuple[Source, ...] = ()

    def flops(self, format: str) -> float:
        """Peak dense FLOP/s in a number format: fp32, tf32, fp16, bf16, fp8, fp4 or int8.

        Raises InvalidRequestError for a format the device has no figure for; none stands in for another.
        """
        return _get(self.dense_flops, format, f"{self.name} has no dense peak for", "it has").value

    def figure(self, quantity: str) -> Figure:
        """A scalar quantity with its source. Raises InvalidRequestError where the catalogue has none."""
        return _get(self.figures, quantity, f"{self.name} has no", "the catalogue has")

    @property
    def bandwidth(self) -> float:
        """Peak of the memory that holds the weights, bytes/s."""
        return self.figure("memory_bandwidth_bytes_per_s").value

    @property
    def memory_bytes(self) -> float:
        """Memory that holds weights and KV, bytes, as the maker counts them."""
        return self.figure("memory_bytes").value

    @property
    def link_bandwidth(self) -> float:
        """To its peers in the scale-up domain, one direction, bytes/s."""
        return self.figure("link_bandwidth_bytes_per_s").value

    @property
    def link_domain(self) -> float:
        """Devices that those links join; infinity where the catalogue knows no limit."""
        return self.figures["link_domain"].value if "link_domain" in self.figures else math.inf

    @property
    def network_bandwidth(self) -> float:
        """Its share of the network between scale-up domains, one direction, bytes/s."""
        return self.figure("network_bandwidth_bytes_per_s").value

    def all_figures(self) -> Iterator[tuple[str, Figure]]:
        """Every number with its name; a table's entries as `dense_flops.fp8`."""
        yield from self.figures.items()
        for table in ("dense_flops", "sparse_flops", "achieved_flops", "usd_per_hour"):
            for name, figure in getattr(self, table).items():
                yield f"{table}.{name}", figure


@dataclass(frozen=True)
class System:
    """Accelerators that one scale-up network joins: a board, a rack, or several racks.

    `figures` has what only the whole has (`power_w`); `stated` has what the maker prints for the whole, which need not
    be the exact sum (rounding, or a slip).
    """

    key: str
    name: str
    vendor: str
    generation: str
    released: str
    accelerator: Accelerator
    num_accelerators: int
    figures: Mapping[str, Figure] = field(default_factory=dict)
    stated: Mapping[str, Figure] = field(default_factory=dict)
    link: str = ""
    aliases: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def flops(self, format: str) -> float:
        """The accelerators' dense peaks together, FLOP/s."""
        return self.num_accelerators * self.accelerator.flops(format)

    @property
    def bandwidth(self) -> float:
        """The accelerators' memory bandwidth together, bytes/s."""
        return self.num_accelerators * self.accelerator.bandwidth

    @property
    def memory_bytes(self) -> float:
        """The accelerators' memory together, bytes."""
        return self.num_accelerators * self.accelerator.memory_bytes

    @property
    def link_bandwidth(self) -> float:
        """What all accelerators together can send to their peers, bytes/s."""
        return self.num_accelerators * self.accelerator.link_bandwidth

    def figure(self, quantity: str) -> Figure:
        """A quantity of the whole, with its source. Raises InvalidRequestError where the catalogue has none."""
        return _get(self.figures, quantity, f"{self.name} has no", "the catalogue has")

    def all_figures(self) -> Iterator[tuple[str, Figure]]:
        """Every number with its name; the maker's sums as `stated.memory_bytes`."""
        yield from self.figures.items()
        for name, figure in self.stated.items():
            yield f"stated.{name}", figure


@dataclass(frozen=True)
class Catalog:
    """Every accelerator and system, by key. `ambiguous` names mean several systems, and are refused with the choice."""

    sources: Mapping[str, Source]
    accelerators: Mapping[str, Accelerator]
    systems: Mapping[str, System]
    ambiguous: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Accelerator | System]:
        yield from self.accelerators.values()
        yield from self.systems.values()

    def __getitem__(self, name: str) -> Accelerator | System:
        """By key, name or alias; case, spaces and punctuation do not matter.

        Raises InvalidRequestError for a name it does not know, with names near it, and for one of several meanings.
        """
        wanted = plain(name)
        names = self._names()
        if wanted in names:
            return names[wanted]
        for word, keys in self.ambiguous.items():
            if plain(word) == wanted:
                meanings = "; ".join(f"{key} ({names[plain(key)].name})" for key in keys)
                raise InvalidRequestError(f"hardware '{name}' has had more than one meaning; say which: {meanings}")
        raise InvalidRequestError(f"hardware '{name}' is not in the catalogue; {self._near(wanted)}")

    def accelerator(self, name: str) -> Accelerator:
        """As `catalog[name]`, of the accelerators alone."""
        found = self[name]
        if isinstance(found, System):
            raise InvalidRequestError(f"'{name}' is a system of {found.num_accelerators} × {found.accelerator.key}")
        return found

    def system(self, name: str) -> System:
        """As `catalog[name]`, of the systems alone."""
        found = self[name]
        if isinstance(found, Accelerator):
            raise InvalidRequestError(f"'{name}' is one accelerator; systems: {', '.join(self.systems)}")
        return found

    def _names(self) -> dict[str, Accelerator | System]:
        return {plain(word): entry for entry in self for word in (entry.key, entry.name, *entry.aliases)}

    def _near(self, wanted: str) -> str:
        names = self._names()
        close = [word for word in names if wanted and wanted in word]
        close += difflib.get_close_matches(wanted, names, n=6, cutoff=0.5)
        keys = list(dict.fromkeys(names[word].key for word in close))[:6]
        return f"near it: {', '.join(keys)}" if keys else f"it has {', '.join(entry.key for entry in self)}"


def plain(name: str) -> str:
    """A name as it is compared: letters and digits, lower case."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _get(table: Mapping[str, Figure], name: str, complaint: str, has: str) -> Figure:
    if name not in table:
        raise InvalidRequestError(f"{complaint} '{name}'; {has} {', '.join(table) or 'none'}")
    return table[name]
