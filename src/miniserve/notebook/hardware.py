"""The hardware catalogue for people: a figure as text, tables of the catalogue, one device's card, as HTML and as text.

Every number carries its mark as a letter, and a card its source as a link. What the numbers are is
`miniserve.hardware.devices`' business; nothing here computes.
"""

import html
from collections.abc import Iterable, Sequence

from miniserve.hardware.devices import Accelerator, System
from miniserve.hardware.figures import MARKS, Figure, Source
from miniserve.hardware.memory_tiers import MemoryTier
from miniserve.notebook.units import format_value

#: The columns of an overview: heading, quantity, the unit's size.
COLUMNS: Sequence[tuple[str, str, float]] = (
    ("memory GB", "memory_bytes", 1e9),
    ("memory GB/s", "memory_bandwidth_bytes_per_s", 1e9),
    ("bf16 TFLOP/s", "dense_flops.bf16", 1e12),
    ("fp8 TFLOP/s", "dense_flops.fp8", 1e12),
    ("fp4 TFLOP/s", "dense_flops.fp4", 1e12),
    ("link GB/s", "link_bandwidth_bytes_per_s", 1e9),
    ("power W", "tdp_w", 1.0),
)
LEGEND = [f"{mark[0].upper()} {mark}: {meaning}" for mark, meaning in MARKS.items()]
_WORDS = {
    "num_sms": "SMs",
    "l2_bytes": "L2 cache",
    "l3_bytes": "L3 cache",
    "sram_bytes": "SRAM",
    "tdp_w": "power",
    "all_in_power_w": "power, all in",
    "power_w": "power",
    "exp_per_s": "exp per second",
    "achieved_bandwidth_bytes_per_s": "memory bandwidth, achieved",
    "dense_flops": "dense",
    "sparse_flops": "sparse",
    "achieved_flops": "achieved",
    "usd_per_hour": "price",
    "stated": "stated for the whole",
    "latency_s": "latency",
}


def quantity_text(name: str) -> str:
    """A quantity's name in words: `memory_bytes` is "memory", `dense_flops.fp8` is "fp8, dense"."""
    table, _, entry = name.rpartition(".")
    words = _WORDS.get(entry) or entry.removesuffix("_per_s").removesuffix("_bytes").removesuffix("_flops")
    return words.replace("_", " ") + (f", {_WORDS[table]}" if table else "")


def figure_text(name: str, figure: Figure) -> str:
    """The value with its unit, three significant digits, without its mark."""
    if name == "compute_capability":
        return f"{figure.value:.1f}"
    if name == "exp_per_s":
        return f"{figure.value / 1e12:g} × 10¹²/s"
    return format_value(figure.value, figure.unit)


def overview_row(accelerator: Accelerator) -> list[str]:
    """`COLUMNS` of one accelerator, each number with its mark's letter; "-" where the catalogue has none."""
    figures = dict(accelerator.all_figures())
    cells = []
    for _, quantity, size in COLUMNS:
        figure = figures.get(quantity)
        cells.append(f"{_short(figure.value / size)} {figure.letter}" if figure else "-")
    return cells


def tier_row(tier: MemoryTier) -> list[str]:
    """What one accelerator has of a memory tier: capacity, read bandwidth, latency, each with its mark's letter."""
    return [f"{figure_text(name, figure)} {figure.letter}" for name, figure in tier.all_figures()]


def card_rows(entry: Accelerator | System | MemoryTier) -> list[tuple[str, str, Figure]]:
    """Every figure of an entry and what other sources say of it: quantity, value, and the figure they are of."""
    rows = []
    for name, figure in entry.all_figures():
        rows.append((quantity_text(name), figure_text(name, figure), figure))
        rows += [("or", figure_text(name, other), other) for other in figure.also]
    return rows


def system_sums(system: System) -> list[tuple[str, str]]:
    """What the accelerators of a system have together: quantity and value."""
    chip = system.accelerator
    sums = [("memory", system.memory_bytes, "B"), ("memory bandwidth", system.bandwidth, "B/s")]
    if "link_bandwidth_bytes_per_s" in chip.figures:
        sums.append(("link bandwidth", system.link_bandwidth, "B/s"))
    sums += [(f"{name}, dense", system.flops(name), "FLOP/s") for name in chip.dense_flops]
    return [(words, format_value(value, unit)) for words, value, unit in sums]


class Table:
    """A table that shows itself as HTML, and as lines of text. Cells of HTML are given as they are to be shown."""

    def __init__(self, label: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """`label` says to a screen reader what the table is. The first cell of a row is its heading."""
        self.label, self.head, self.rows = label, head, rows

    def __repr__(self) -> str:
        return f"{self.label}: {len(self.rows)} rows"

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in self.head)
        body = "".join(
            f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>'
            for row in self.rows
        )
        return (
            f'<div style="overflow-x:auto" tabindex="0" role="region" aria-label="{html.escape(self.label)}">'
            f'<table class="ms-status table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )


class Cards:
    """The cards of several entries, each folded under its name."""

    def __init__(self, entries: Iterable[Accelerator | System | MemoryTier]) -> None:
        """Keep the order given."""
        self.entries = tuple(entries)

    def __repr__(self) -> str:
        return "\n".join(f"{entry.key}: {entry.name}" for entry in self.entries)

    def _repr_html_(self) -> str:
        # Chromium lays out what a closed <details> holds; accessibility checks then find it under other elements.
        style = "<style>.ms-cards details:not([open]) > :not(summary) { display: none; }</style>"
        cards = (f"<details><summary>{html.escape(e.name)}</summary>{_card(e)}</details>" for e in self.entries)
        return f'{style}<div class="ms-cards">{"".join(cards)}</div>'


def show_accelerators(accelerators: Iterable[Accelerator], label: str) -> Table:
    """The overview: one row each, in the order given."""
    rows = [
        [html.escape(one.key), *(cell.replace(" ", "&nbsp;") for cell in overview_row(one))] for one in accelerators
    ]
    return Table(label, ("accelerator", *(heading for heading, _, _ in COLUMNS)), rows)


def show_systems(systems: Iterable[System], label: str) -> Table:
    """The systems: what each is made of and what its accelerators have together."""
    rows = []
    for one in systems:
        sums = dict(system_sums(one))
        power = one.figures.get("power_w")
        cells = [sums.get(name, "-") for name in ("memory", "memory bandwidth", "fp8, dense", "fp4, dense")]
        cells.append(f"{format_value(power.value, power.unit)} {power.letter}" if power else "-")
        rows.append([html.escape(one.key), f"{one.num_accelerators:,} × {one.accelerator.key}", *cells])
    return Table(label, ("system", "made of", "memory", "memory bandwidth", "fp8", "fp4", "power"), rows)


def show_tiers(tiers: Iterable[MemoryTier], label: str) -> Table:
    """The memory tiers: beside which accelerators, and what each of these has of it."""
    rows = [
        [
            html.escape(one.kind),
            html.escape(one.name) + (", shared by all engines" if one.shared else ""),
            ", ".join(one.accelerators),
            *(cell.replace(" ", "&nbsp;") for cell in tier_row(one)),
        ]
        for one in tiers
    ]
    return Table(label, ("tier", "what", "beside", "capacity", "read bandwidth", "latency"), rows)


def show_marks(figures: Iterable[Figure]) -> Table:
    """What the marks mean, and how many of `figures` have each."""
    marks = [figure.mark for figure in figures]
    rows = [(mark[0].upper(), mark, meaning, str(marks.count(mark))) for mark, meaning in MARKS.items()]
    return Table("Marks", ("letter", "mark", "meaning", "numbers"), rows)


def show_cards(entries: Iterable[Accelerator | System | MemoryTier]) -> Cards:
    """Every figure of every entry, with source, mark, and what other sources say."""
    return Cards(entries)


def show_sources(sources: Iterable[Source]) -> Table:
    """The sources as links; where the original was not read, the page that quotes it."""
    rows = []
    for one in sources:
        via = f'<a href="{html.escape(one.via)}">read here</a>' if one.via else ""
        rows.append(
            [html.escape(one.key), html.escape(one.publisher), _link(one, one.title), html.escape(one.date), via]
        )
    return Table("Sources of the catalogue", ("key", "publisher", "title", "date", "copy"), rows)


def _short(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0") if value >= 1 else f"{value:.2g}"


def _card(entry: Accelerator | System | MemoryTier) -> str:
    rows = [
        [
            html.escape(words),
            html.escape(value).replace(" ", "&nbsp;"),
            figure.mark,
            _link(figure.source, figure.source.key),
            html.escape(figure.note),
        ]
        for words, value, figure in card_rows(entry)
    ]
    if isinstance(entry, MemoryTier):
        about = f"memory tier {entry.kind}, beside: {', '.join(entry.accelerators)}"
    else:
        about = f"{entry.generation}; released: {entry.released}" + (f"; link: {entry.link}" if entry.link else "")
    if isinstance(entry, Accelerator) and entry.memory:
        about += f"; memory: {entry.memory}"
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in (about, *entry.notes))
    if isinstance(entry, Accelerator) and entry.checked_against:
        links = ", ".join(_link(source, source.key) for source in entry.checked_against)
        notes += f"<li>Compared with a second source: {links}. They agree, but for what is said here.</li>"
    table = Table(entry.name, ("quantity", "value", "mark", "source", "note"), rows)._repr_html_() if rows else ""
    return f"<ul>{notes}</ul>{table}"


def _link(source: Source, text: str) -> str:
    return f'<a href="{html.escape(source.url)}">{html.escape(text)}</a>'
