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

from miniserve.errors import InvalidRequestError
from miniserve.hardware.figures import Figure, Source, named
from miniserve.hardware.memory_tiers import MemoryTier


@dataclass(frozen=True)
class Accelerator:
    """One chip, or one package that software sees as one device.

    `key` and `aliases` are what it is found by; `kind` is "gpu", "lpu", "asic" or "dpu"; `memory` and `link` name the
    technology of its memory and of the links to its peers; `released` is a month. `figures` has the scalar quantities
    by name (`memory_bytes`, `tdp_w`, …); the tables `dense_flops`, `sparse_flops` and `achieved_flops` have FLOP/s by
    number format (operations for integers); `usd_per_hour` has prices by kind. `checked_against`: second sources that
    were compared, and agree but for what `Figure.also` and `notes` say.

    Example:
        >>> from miniserve.hardware.catalog import load_catalog
        >>> h100 = load_catalog().accelerator("h100")
        >>> round(h100.flops("fp8") / h100.bandwidth)
        591
        >>> h100.flops("fp4")
        Traceback (most recent call last):
            ...
        miniserve.errors.InvalidRequestError: NVIDIA H100 SXM5 80 GB has no dense peak for 'fp4'; it has fp32, ...
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
        return named(self.dense_flops, format, f"{self.name} has no dense peak for", "it has").value

    def figure(self, quantity: str) -> Figure:
        """A scalar quantity with its source. Raises InvalidRequestError where the catalogue has none."""
        return named(self.figures, quantity, f"{self.name} has no", "the catalogue has")

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

    Example:
        >>> from miniserve.hardware.catalog import load_catalog
        >>> rack = load_catalog().system("gb200-nvl72")
        >>> rack.accelerator.key, rack.num_accelerators, f"{rack.memory_bytes / 1e12:.1f} TB"
        ('gb200', 72, '13.4 TB')
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
        return named(self.figures, quantity, f"{self.name} has no", "the catalogue has")

    def all_figures(self) -> Iterator[tuple[str, Figure]]:
        """Every number with its name; the maker's sums as `stated.memory_bytes`."""
        yield from self.figures.items()
        for name, figure in self.stated.items():
            yield f"stated.{name}", figure


@dataclass(frozen=True)
class Catalog:
    """Every accelerator and system, by key, and the memory tiers beside accelerators.

    `ambiguous` names mean several systems, and are refused with the choice.

    Example:
        >>> from miniserve.hardware.catalog import load_catalog
        >>> catalog = load_catalog()
        >>> catalog["b200"] is catalog.accelerator("b200"), "gb200-nvl72" in catalog.systems
        (True, True)
        >>> sorted(catalog.tiers_beside(catalog.accelerator("h100")))
        ['dram', 'nvme']
    """

    sources: Mapping[str, Source]
    accelerators: Mapping[str, Accelerator]
    systems: Mapping[str, System]
    ambiguous: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tiers: Mapping[str, MemoryTier] = field(default_factory=dict)

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
            one = found.accelerator.key
            raise InvalidRequestError(f"'{name}' is a system of {found.num_accelerators} × {one}: name one, '{one}'")
        return found

    def system(self, name: str) -> System:
        """As `catalog[name]`, of the systems alone."""
        found = self[name]
        if isinstance(found, Accelerator):
            raise InvalidRequestError(f"'{name}' is one accelerator; systems: {', '.join(self.systems)}")
        return found

    def tiers_beside(self, accelerator: Accelerator) -> dict[str, MemoryTier]:
        """The memory tiers that an accelerator has, by kind."""
        return {tier.kind: tier for tier in self.tiers.values() if accelerator.key in tier.accelerators}

    def tiers_of(self, kind: str) -> list[MemoryTier]:
        """All of one kind, such as `dram`, whatever they are beside. Raises InvalidRequestError if there is none."""
        found = [tier for tier in self.tiers.values() if tier.kind == kind]
        if not found:
            has = ", ".join(dict.fromkeys(tier.kind for tier in self.tiers.values())) or "none"
            raise InvalidRequestError(f"memory tier '{kind}' is not in the catalogue; it has {has}")
        return found

    def tier(self, kind: str, accelerator: Accelerator) -> MemoryTier:
        """The one of that kind beside an accelerator.

        Raises InvalidRequestError for a kind that nothing has, and for one that this accelerator has not.
        """
        beside, known = self.tiers_beside(accelerator), self.tiers_of(kind)
        if kind not in beside:
            has, others = ", ".join(beside) or "no other", ", ".join(key for tier in known for key in tier.accelerators)
            message = f"the catalogue has no memory tier '{kind}' beside a {accelerator.name}, and {has} there"
            raise InvalidRequestError(f"{message}; it has that one beside {others}")
        return beside[kind]

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
