"""`miniserve hardware`: the catalogue as a table, or one device's card with each value's source and mark.

Tables on a terminal, tab-separated lines in a pipe, one JSON value with --json. It reads the file that ships with the
package, and knows nothing of the machine it runs on.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from miniserve.hardware.devices import Accelerator, Catalog, System
    from miniserve.hardware.figures import Figure, Source
    from miniserve.hardware.memory_tiers import MemoryTier


def hardware(
    name: Annotated[
        str | None, typer.Argument(help="A device, a system, or a kind of memory tier; all of them without.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON value.")] = False,
) -> None:
    """Accelerators, systems, memory tiers: each number sourced."""
    from miniserve.hardware.catalog import load_catalog

    catalog = load_catalog()
    if name is None:
        if as_json:
            rows = {
                "entries": [_entry_json(entry) for entry in catalog],
                "tiers": [_tier_json(tier) for tier in catalog.tiers.values()],
                "sources": _sources_json([*catalog, *catalog.tiers.values()]),
            }
            typer.echo(json.dumps(rows, ensure_ascii=False))
        else:
            _print_overview(catalog)
    elif name in {tier.kind for tier in catalog.tiers.values()}:
        tiers = catalog.tiers_of(name)
        if as_json:
            found = {"tiers": [_tier_json(tier) for tier in tiers], "sources": _sources_json(tiers)}
            typer.echo(json.dumps(found, ensure_ascii=False))
        else:
            _print_tiers(tiers)
    else:
        entry = catalog[name]
        if as_json:
            typer.echo(json.dumps(_entry_json(entry) | {"sources": _sources_json([entry])}, ensure_ascii=False))
        else:
            _print_card(entry, catalog)


def _print_overview(catalog: "Catalog") -> None:
    from miniserve.notebook.hardware import COLUMNS, LEGEND, overview_row, tier_row

    head = ("vendor", "generation", "accelerator", *(heading for heading, _, _ in COLUMNS))
    chips = [(one.vendor, one.generation, one.key, *overview_row(one)) for one in catalog.accelerators.values()]
    _print_table(head, chips, groups=2)
    racks = [
        (one.vendor, one.generation, one.key, f"{one.num_accelerators} × {one.accelerator.key}")
        for one in catalog.systems.values()
    ]
    _print_table(("vendor", "generation", "system", "made of"), racks, groups=2)
    places = [("memory tiers", one.kind, ", ".join(one.accelerators), *tier_row(one)) for one in catalog.tiers.values()]
    _print_table(("", "tier", "beside", "capacity", "read bandwidth", "latency"), places, groups=1)
    for line in (*LEGEND, "Peaks are dense. `miniserve hardware NAME` gives each value's source."):
        typer.echo(line, err=True)


def _print_tiers(tiers: "Sequence[MemoryTier]") -> None:
    from miniserve.notebook.hardware import card_rows

    for tier in tiers:
        typer.echo(f"{tier.name} ({tier.key}), beside {', '.join(tier.accelerators)}; what one of these has of it")
        if tier.shared:
            typer.echo("shared: all engines see the same blocks")
        rows = [(words, value, f.mark, f.source.key, f.note) for words, value, f in card_rows(tier)]
        _print_table(("quantity", "value", "mark", "source", "note"), rows)
        for note in tier.notes:
            typer.echo(f"note: {note}")
    _print_sources(tiers)


def _print_card(entry: "Accelerator | System", catalog: "Catalog") -> None:
    from miniserve.hardware.devices import Accelerator, System
    from miniserve.notebook.hardware import card_rows, system_sums

    typer.echo(f"{entry.name} ({entry.key}): {entry.vendor}, {entry.generation}, {entry.released}")
    for label, text in (("memory", getattr(entry, "memory", "")), ("link", entry.link)):
        if text:
            typer.echo(f"{label}: {text}")
    rows: list[tuple[str, ...]] = [(words, value, f.mark, f.source.key, f.note) for words, value, f in card_rows(entry)]
    if isinstance(entry, System):
        whole = f"{entry.num_accelerators} × {entry.accelerator.key}"
        rows[:0] = [(words, value, "sum", whole, "") for words, value in system_sums(entry)]
    _print_table(("quantity", "value", "mark", "source", "note"), rows)
    for note in entry.notes:
        typer.echo(f"note: {note}")
    if checked := getattr(entry, "checked_against", ()):
        typer.echo(f"checked against: {', '.join(source.key for source in checked)}")
    if isinstance(entry, Accelerator) and (beside := catalog.tiers_beside(entry)):
        typer.echo(f"memory tiers beside it: {', '.join(beside)}")
    _print_sources([entry])


def _print_sources(entries: "Iterable[Accelerator | System | MemoryTier]") -> None:
    for source in _sources(entries):
        via = f" (read at {source.via})" if source.via else ""
        typer.echo(f"{source.key}: {source.publisher}, {source.title}, {source.date}. {source.url}{via}")


def _print_table(columns: Sequence[str], rows: Sequence[tuple[str, ...]], groups: int = 0) -> None:
    """`groups`: so many first columns become a heading over the rows that share them. A pipe gets every cell."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            typer.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    headings = [column.replace(" ", "\n", 1) if groups else column for column in columns[groups:]]
    widths = [max(len(cell) for cell in column) for column in zip(*(row[groups:] for row in rows), strict=True)]
    for i, (group, members) in enumerate(groupby(rows, key=lambda row: row[:groups])):
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=i == 0)
        for j, (heading, width) in enumerate(zip(headings, widths, strict=True)):
            # Only a table in groups has fixed widths: its parts must align, and it is narrow enough.
            fixed = max(width, *map(len, heading.split("\n")), 0) if groups else None
            table.add_column(heading, justify="right" if groups and j else "left", width=fixed, overflow="fold")
        for row in members:
            table.add_row(*map(Text, row[groups:]))
        if groups:
            console.print(Text(", ".join(group), style="bold"))
        console.print(table)


def _entry_json(entry: "Accelerator | System") -> dict[str, Any]:
    from miniserve.hardware.devices import System

    texts = ("key", "name", "vendor", "generation", "released", "link")
    common = {name: getattr(entry, name) for name in texts} | {"aliases": entry.aliases, "notes": entry.notes}
    if isinstance(entry, System):
        common |= {"accelerator": entry.accelerator.key, "num_accelerators": entry.num_accelerators}
    else:
        common |= {"kind": entry.kind, "memory": entry.memory}
        common |= {"checked_against": [source.key for source in entry.checked_against]}
    return common | {"figures": {name: _figure_json(figure) for name, figure in entry.all_figures()}}


def _tier_json(tier: "MemoryTier") -> dict[str, Any]:
    names = ("key", "kind", "name", "accelerators", "shared", "notes")
    figures = {name: _figure_json(figure) for name, figure in tier.all_figures()}
    return {name: getattr(tier, name) for name in names} | {"figures": figures}


def _figure_json(figure: "Figure") -> dict[str, Any]:
    return {
        "value": figure.value,
        "unit": figure.unit,
        "mark": figure.mark,
        "source": figure.source.key,
        "note": figure.note,
        "also": [_figure_json(other) for other in figure.also],
    }


def _sources(entries: "Iterable[Accelerator | System | MemoryTier]") -> list["Source"]:
    figures = [figure for entry in entries for _, figure in entry.all_figures()]
    used = {one.source.key: one.source for figure in figures for one in (figure, *figure.also)}
    used |= {source.key: source for entry in entries for source in getattr(entry, "checked_against", ())}
    return [used[key] for key in sorted(used)]


def _sources_json(entries: "Iterable[Accelerator | System | MemoryTier]") -> dict[str, dict[str, str]]:
    return {
        one.key: {name: getattr(one, name) for name in ("title", "publisher", "url", "date", "via")}
        for one in _sources(entries)
    }
