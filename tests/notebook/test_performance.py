"""The performance ledger reads gains where they were recorded, judges them itself, and refuses what is not sound."""

import json
import re
from pathlib import Path

import pytest

from miniserve.errors import CorruptFileError, InvalidRequestError
from miniserve.notebook.performance import load_performance

ROOT = Path(__file__).parents[2]
GOOD = """
[[box]]
change = "a for b"
load = "one user"
gain = { of = ["run", "before_s"], over = ["run", "after_s"] }
now = "in use"
section = "01_page.md#tried"
[[box]]
change = "b for a"
load = "one user"
gain = { of = ["run", "after_s"], over = ["run", "before_s"] }
now = "withdrawn"
section = "01_page.md#tried"
"""


def repository(folder: Path, ledger: str) -> Path:
    (folder / "book" / "_data").mkdir(parents=True)
    (folder / "results").mkdir()
    (folder / "book" / "01_page.md").write_text("# 1. Page\n## Tried\n")
    data = {"before_s": 3.0, "after_s": 2.0, "nothing_s": -1}
    run = {"label": "recorded", "device": "box", "date": "2026-01-02", "command": "make", "data": data}
    (folder / "results" / "run.json").write_text(json.dumps(run))
    (folder / "book" / "_data" / "performance.toml").write_text(ledger)
    return folder


def test_gains_and_losses_are_told_apart_by_the_numbers(tmp_path):
    ledger = load_performance(repository(tmp_path, GOOD))
    assert ledger.count() == "1 gained, 0 no difference, 1 lost, of 2"
    shown = repr(ledger.show("box"))
    assert "| [a for b](01_page.md#tried) | one user | 1.50× | gained, in use |" in shown
    assert "| [b for a](01_page.md#tried) | one user | 0.67× | **lost**, withdrawn |" in shown
    assert "Read from results/run.json (recorded on box, 2026-01-02)." in shown
    with pytest.raises(InvalidRequestError, match="no group 'bix'; there is box"):
        ledger.show("bix")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('now = "withdrawn"', 'now = "great"', r"box\[1\]: now 'great' is none of in use"),
        ('load = "one user"', "", r"box\[0\]: has no load"),
        ('["run", "before_s"]', '["run", "before"]', r"box\[0\]: run > before: no 'before' there"),
        ('["run", "before_s"]', '["run", "nothing_s"]', r"box\[0\]: a for b: measured gain -0.5 is not a positive"),
        ("#tried", "#tired", r"box\[0\]: 01_page.md has no section '#tired'"),
        ("[[box]]", "[box]", "performance.toml"),
    ],
)
def test_what_is_not_sound_is_refused_by_its_place(tmp_path, old, new, told):
    with pytest.raises(CorruptFileError, match=told):
        load_performance(repository(tmp_path, GOOD.replace(old, new)))


def test_the_books_page_shows_every_group():
    ledger = load_performance(ROOT)
    page = (ROOT / "book" / "performance.md").read_text(encoding="utf-8")
    assert re.findall(r'^ledger\.show\("(.+)"\)$', page, re.MULTILINE) == list(ledger.groups)
