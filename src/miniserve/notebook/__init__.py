"""Helpers for the book's chapters: sliders, real source, plot style, recorded results and where numbers come from.

Everything here works with no GPU, imports no torch, and imports matplotlib or anywidget only when it is used. A chapter
needs the extra `notebook`; `import miniserve.notebook` needs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miniserve.notebook.command import run_command
    from miniserve.notebook.explorer import Axis, Explorer, grid_error
    from miniserve.notebook.ledger import Entry, Ledger
    from miniserve.notebook.results import Measurement, load_results, status_box
    from miniserve.notebook.source import show_source
    from miniserve.notebook.style import COLOR_OF, COLORS, HEAT, INK, label_lines, show_figure, use_book_style
    from miniserve.notebook.units import format_value

_LAZY = {
    "COLORS": "style",
    "COLOR_OF": "style",
    "HEAT": "style",
    "INK": "style",
    "Axis": "explorer",
    "Entry": "ledger",
    "Explorer": "explorer",
    "Ledger": "ledger",
    "Measurement": "results",
    "format_value": "units",
    "grid_error": "explorer",
    "label_lines": "style",
    "load_results": "results",
    "run_command": "command",
    "show_figure": "style",
    "show_source": "source",
    "status_box": "results",
    "use_book_style": "style",
}

__all__ = [
    "COLORS",
    "COLOR_OF",
    "HEAT",
    "INK",
    "Axis",
    "Entry",
    "Explorer",
    "Ledger",
    "Measurement",
    "format_value",
    "grid_error",
    "label_lines",
    "load_results",
    "run_command",
    "show_figure",
    "show_source",
    "status_box",
    "use_book_style",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"miniserve.notebook.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'miniserve.notebook' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
