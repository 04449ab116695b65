"""What readers of the book's own data files share: every entry is checked, an error names the file and the place.

A reader subclasses `Checked`; it has the shelf that numbers are read from and the pages that links lead to. It decides
nothing: what an entry means is the reader's business.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from miniserve.errors import CorruptFileError
from miniserve.notebook.evidence import PICKS, Number, Shelf
from miniserve.notebook.sections import Section, sections_of


class Checked:
    """A data file of the repository at `root`; `file` is its name, for errors."""

    def __init__(self, file: str, root: Path) -> None:
        """Nothing is read yet."""
        self.file, self.book = file, root / "book"
        self.shelf = Shelf(root / "results")
        self.pages: dict[str, dict[str, Section]] = {}

    def fields(self, at: str, raw: Any, needed: Mapping[str, type], others: Mapping[str, type] | None = None) -> None:
        """Hold that `raw` is a table with the keys that are needed, perhaps the others, each of its type and filled."""
        known = {**needed, **(others or {})}
        if not isinstance(raw, dict):
            self.fail(at, "must be a table")
        if strange := sorted(set(raw) - set(known)):
            self.fail(at, f"unknown key '{strange[0]}'; known are {', '.join(sorted(known))}")
        for name, kind in known.items():
            if name in needed and not raw.get(name):
                self.fail(at, f"has no {name}")
            if name in raw and not isinstance(raw[name], kind):
                self.fail(at, f"{name} {str(raw[name])[:40]!r} must be a {kind.__name__}")

    def number(self, at: str, raw: Any) -> Number:
        """A path to a number, or to two whose ratio it is."""
        self.fields(at, raw, {"of": list}, {"over": list, "unit": str, "pick": str})
        if raw.get("pick", "") not in PICKS:
            self.fail(at, f"pick {raw['pick']!r} is none of least, most")
        return Number(**raw)

    def section(self, at: str, address: str) -> Section:
        """The section that `page.md#anchor` leads to."""
        page, _, anchor = address.partition("#")
        if page not in self.pages:
            path = self.book / page
            if not page or not path.is_file():
                self.fail(at, f"the book has no page {page!r}")
            self.pages[page] = sections_of(path)
        if anchor not in self.pages[page]:
            self.fail(at, f"{page} has no section '#{anchor}'; it has {', '.join(self.pages[page])}")
        return self.pages[page][anchor]

    def fail(self, at: str, problem: str) -> NoReturn:
        """Raise CorruptFileError with the file, the place and the problem."""
        raise CorruptFileError(f"{self.file}: {at}: {problem}")
