"""Chapter 14: its prices are the catalogue's. Changed there, they change on the page; none is typed into it."""

import contextlib
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from miniserve.hardware import catalog as catalog_module

CHAPTER = Path(__file__).parents[2] / "book" / "14_choosing.md"
CELL = re.compile(r"^```\{code-cell\} ipython3\n(?::tags:[^\n]*\n)?(.*?)^```$", re.DOTALL | re.MULTILINE)
NEEDED = ("catalog = load_catalog()", "AGENTS = ", "MIXTURE = ", "DOCUMENTS = ", "CHIPS = ", "table = {")
DOLLARS = re.compile(r"\$\s?\d")


def offered() -> dict[str, list[float]]:
    """What the page prints of each service's offers: $ a million on a B200, and a TPU's fair price."""
    cells = CELL.findall(CHAPTER.read_text(encoding="utf-8"))
    chosen = [next(cell for cell in cells if f"\n{start}" in f"\n{cell}") for start in NEEDED]
    names: dict[str, object] = {}
    for cell in chosen:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(cell, str(CHAPTER), "exec"), names)
    lines = [line.split() for line in printed.getvalue().splitlines()]
    return {
        "b200": [float(line[2]) for line in lines if line[:1] == ["b200"]],
        "tpu7x": [float(line[-1]) for line in lines if line[:1] == ["tpu7x"]],
    }


def test_a_price_that_changes_in_the_catalogue_changes_on_the_page(monkeypatch):
    """3 s, most of them imports."""
    real = catalog_module.load_catalog()
    before = offered()
    dearer = {
        key: replace(
            device,
            usd_per_hour={kind: replace(each, value=3 * each.value) for kind, each in device.usd_per_hour.items()},
        )
        for key, device in real.accelerators.items()
    }
    monkeypatch.setattr(catalog_module, "load_catalog", lambda: replace(real, accelerators=dearer))
    after = offered()
    for key in ("b200", "tpu7x"):
        assert len(before[key]) == 3
        assert after[key] == pytest.approx([3 * value for value in before[key]], abs=0.02)


def test_no_price_is_typed():
    text = CELL.sub("", CHAPTER.read_text(encoding="utf-8"))
    assert not DOLLARS.findall(text)
    for cell in CELL.findall(CHAPTER.read_text(encoding="utf-8")):
        assert not DOLLARS.findall(cell)
