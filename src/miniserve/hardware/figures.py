"""A number with where it was read and who vouches for it. Torch-free, and no number is here."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from miniserve.errors import InvalidRequestError
from miniserve.tables import from_table

Mark = Literal["measured", "vendor", "analyst", "secondary", "preliminary", "derived"]
#: What a mark says of a number. The first letter, as a capital, is its short form.
MARKS: Mapping[Mark, str] = {
    "measured": "timed, or reported by the device itself, and published by who ran it",
    "vendor": "stated by the maker, for a product that ships",
    "analyst": "a model or an estimate of an analyst",
    "secondary": "found with third parties only",
    "preliminary": "stated or reported ahead of shipment, and may change",
    "derived": "stated by nobody: worked out here from other numbers, as the note says",
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

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "via" and not getattr(self, field.name):
                raise InvalidRequestError(f"sources.{self.key}: has no {field.name}")
        for name in ("url", "via"):
            address = getattr(self, name)
            if address and not address.startswith(("https://", "http://")):
                raise InvalidRequestError(f"sources.{self.key}: {name} {address!r} is no web address")
        if not re.fullmatch(r"\d{4}(-\d\d(-\d\d)?)?", self.date):
            raise InvalidRequestError(f"sources.{self.key}: date {self.date!r} is not YYYY, YYYY-MM or YYYY-MM-DD")


AnySource = TypeVar("AnySource", bound=Source)


def read_sources(tables: Mapping[str, Any], kind: type[AnySource] = Source) -> dict[str, AnySource]:  # type: ignore[assignment]
    """The tables [sources.KEY] of a file, by key. Raises InvalidRequestError, at the place, for what is not sound."""
    return {key: from_table(kind, {**entry, "key": key}, f"sources.{key}") for key, entry in tables.items()}


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
        """The mark in one letter: M, V, A, S, P or D."""
        return self.mark[0].upper()

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest value any source gives; for a study that must hold for both."""
        values = [self.value, *(other.value for other in self.also)]
        return min(values), max(values)


def named(table: Mapping[str, Figure], name: str, complaint: str, has: str) -> Figure:
    """One of a table. Raises InvalidRequestError for a name it lacks: the complaint, the name, and those it has."""
    if name not in table:
        raise InvalidRequestError(f"{complaint} '{name}'; {has} {', '.join(table) or 'none'}")
    return table[name]
