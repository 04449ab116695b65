"""The performance ledger: what each change was predicted to gain, what it gained, and what became of it. Losses stay.

A gain is a ratio of times, before over after: 2 is twice as fast. The verdict is computed from the two numbers, so that
no entry can be called a success by hand. Where the numbers come from is the caller's business; each entry carries the
label of its measurement (see `results`).
"""

import html
import math
from collections.abc import Iterable
from dataclasses import dataclass

from miniserve.errors import InvalidRequestError
from miniserve.notebook.hardware import Table
from miniserve.notebook.results import MEANING, Label

CLOSE = 0.15  # how far off a prediction may be and still have held, as a share of itself
NO_GAIN = 0.05  # without a prediction: what is nearer to 1 than this is no difference
HEAD = ("change", "where", "predicted", "by", "measured", "verdict", "kind", "now")


@dataclass(frozen=True)
class Entry:
    """One change.

    Attributes:
        change: what was done, and instead of what.
        where: device and load.
        predicted: the gain that a calculation gave; None if nothing was predicted.
        by: which calculation.
        measured: the gain that came of it.
        label: of the measurement.
        now: what became of it: "in use", "withdrawn", or how far it got.
    """

    change: str
    where: str
    predicted: float | None
    by: str
    measured: float
    label: Label
    now: str = "in use"

    def __post_init__(self) -> None:
        """Reject what is no ratio of two times."""
        for name, gain in (("predicted", self.predicted), ("measured", self.measured)):
            if gain is not None and not (math.isfinite(gain) and gain > 0):
                raise InvalidRequestError(f"{self.change}: {name} gain {gain} is not a positive number")

    @property
    def verdict(self) -> str:
        """ "lost" (slower than before), or how the prediction fared: "held", "fell short" or "exceeded".

        Without a prediction: "gained", "no difference" or "lost".
        """
        if self.predicted is None:
            off = self.measured - 1
            return "no difference" if abs(off) <= NO_GAIN else "gained" if off > 0 else "lost"
        if self.measured < 1:
            return "lost"
        share = self.measured / self.predicted
        return "fell short" if share < 1 - CLOSE else "exceeded" if share > 1 + CLOSE else "held"

    @property
    def cells(self) -> tuple[str, ...]:
        """The row, as text."""
        predicted, measured = ("-" if gain is None else f"{gain:.2f}×" for gain in (self.predicted, self.measured))
        return (self.change, self.where, predicted, self.by, measured, self.verdict, self.label, self.now)


class Ledger:
    """Entries as a table, in the order given. `title` is its name for screen readers, another for each on a page."""

    def __init__(self, entries: Iterable[Entry], title: str = "Performance ledger") -> None:
        """Keep them."""
        self.entries, self.title = tuple(entries), title
        if not self.entries:
            raise InvalidRequestError("a ledger needs at least one entry")

    def count(self, verdict: str) -> int:
        """How many entries have that verdict."""
        return sum(entry.verdict == verdict for entry in self.entries)

    def __repr__(self) -> str:
        rows = [HEAD, *(entry.cells for entry in self.entries)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    def _repr_html_(self) -> str:
        rows = []
        for entry in self.entries:
            change, where, predicted, by, measured, verdict, label, now = map(html.escape, entry.cells)
            kind = f'<span class="ms-label ms-{label}" title="{MEANING[entry.label]}">{label}</span>'
            strong = f"<strong>{verdict}</strong>" if verdict == "lost" else verdict
            rows.append([change, where, predicted, by, measured, strong, kind, now])
        return Table(self.title, HEAD, rows)._repr_html_()
