"""What was tried to make things faster, over the whole book: each gain or loss is read from the run that recorded it.

The list is a file, `book/_data/performance.toml`: groups of changes, each with the path to what was before over what is
after, turned so that more than 1 is better. The verdict is computed (see `ledger`); reading is as strict as of claims.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miniserve.errors import CorruptFileError, InvalidRequestError
from miniserve.notebook.checked import Checked
from miniserve.notebook.claims_page import Page
from miniserve.notebook.ledger import Entry
from miniserve.notebook.results import results_folder
from miniserve.notebook.sections import Section
from miniserve.tables import read_toml

NOW = ("in use", "an option", "withdrawn", "not in use")


@dataclass(frozen=True)
class Change:
    """An entry of the ledger, the file that recorded it, and the section of the book that says more."""

    entry: Entry
    origin: str
    section: Section


@dataclass(frozen=True)
class Performance:
    """The changes by group, in the order of the file."""

    groups: dict[str, tuple[Change, ...]]

    def show(self, group: str) -> Page:
        """One group as a table: what was tried, under which load, the gain, and what became of it."""
        if group not in self.groups:
            raise InvalidRequestError(f"no group {group!r}; there is {', '.join(self.groups)}")
        rows = [_row(change) for change in self.groups[group]]
        runs: dict[str, dict[str, None]] = {}
        for change in self.groups[group]:
            file, _, provenance = change.origin.partition(", ")
            runs.setdefault(provenance, {})[file] = None
        origins = "; ".join(f"{', '.join(files)} ({provenance})" for provenance, files in runs.items())
        head = "| what was tried | load | gain | verdict, now |"
        return Page([head, "|---|---|---|---|", *rows, "", f"Read from {origins}."])

    def count(self) -> str:
        """How many changes gained, made no difference and lost, in a line."""
        verdicts = [change.entry.verdict for changes in self.groups.values() for change in changes]
        told = ", ".join(f"{verdicts.count(each)} {each}" for each in ("gained", "no difference", "lost"))
        return f"{told}, of {len(verdicts)}"


def load_performance(root: Path | None = None) -> Performance:
    """The ledger of the repository at `root`, or of the one above this directory.

    Raises CorruptFileError for whatever is not sound, with its place.
    """
    folder = root or results_folder().parent
    path = folder / "book" / "_data" / "performance.toml"
    return _Reader(path.name, folder).performance(read_toml(path))


class _Reader(Checked):
    def performance(self, raw: dict[str, Any]) -> Performance:
        for group, changes in raw.items():
            if not isinstance(changes, list) or not changes:
                self.fail(group, f"must be a list of tables, [[{group}]]")
        return Performance(
            {
                group: tuple(self.change(f"{group}[{i}]", each) for i, each in enumerate(changes))
                for group, changes in raw.items()
            }
        )

    def change(self, at: str, raw: Any) -> Change:
        self.fields(at, raw, {"change": str, "load": str, "gain": dict, "now": str, "section": str})
        if raw["now"] not in NOW:
            self.fail(at, f"now {raw['now']!r} is none of {', '.join(NOW)}")
        number = self.number(f"{at}.gain", raw["gain"])
        try:
            gain, label, origin = self.shelf.value(number), self.shelf.label(number), self.shelf.origin(number.of)
            entry = Entry(raw["change"], raw["load"], None, "", gain, label, raw["now"])
        except (InvalidRequestError, CorruptFileError) as error:
            self.fail(at, str(error))
        return Change(entry, origin, self.section(at, raw["section"]))


def _row(change: Change) -> str:
    entry = change.entry
    verdict = f"**{entry.verdict}**" if entry.verdict == "lost" else entry.verdict
    link = f"[{entry.change}]({change.section.page}#{change.section.anchor})"
    return f"| {link} | {entry.where} | {entry.measured:.2f}× | {verdict}, {entry.now} |"
