"""The claims ledger refuses what is not sound, by its place; the book's own holds together, and its page shows all of it."""

import json
import re
from pathlib import Path

import pytest

from miniserve.errors import CorruptFileError, InvalidRequestError
from miniserve.notebook.claims import VERDICTS, load_claims
from miniserve.notebook.claims_page import show_claim, show_claim_sources, show_summary, show_verdicts
from miniserve.notebook.sections import sections_of

ROOT = Path(__file__).parents[2]
SOURCE = """
[sources.maker]
title = "A page"
publisher = "Maker"
url = "https://example.org/a"
date = "2026-01"
rank = "primary"
trust = "The maker's words."
"""
CLAIM = """
[claims.fast]
title = "It is fast"
claim = "It is twice as fast."
verdict = "measured here"
why = "So it was, once, for $2."
sections = ["01_page.md#the-claim"]
[[claims.fast.evidence]]
text = "Ran {x} as fast."
numbers = { x = { of = ["run", "x"], unit = "×" } }
[[claims.fast.evidence]]
text = "Says so."
by = "maker"
"""
GOOD = "checked = 2026-11-26\n" + SOURCE + CLAIM


def repository(folder: Path, ledger: str) -> Path:
    """A repository of one page, one result and a ledger."""
    (folder / "book" / "_data").mkdir(parents=True)
    (folder / "results").mkdir()
    (folder / "book" / "01_page.md").write_text("# 1. Page\n## The claim\n")
    run = {"label": "recorded", "device": "box", "date": "2026-01-02", "command": "make", "data": {"x": 2}}
    (folder / "results" / "run.json").write_text(json.dumps(run))
    (folder / "book" / "_data" / "claims.toml").write_text(ledger, encoding="utf-8")
    return folder


def test_a_claim_is_read_with_its_numbers(tmp_path):
    claims = load_claims(repository(tmp_path, GOOD))
    assert claims["fast"].evidence[0].text == "Ran 2× as fast."
    assert [each.kind for each in claims["fast"].evidence] == ["recorded", "claimed"]
    assert claims.count()["measured here"] == sum(claims.count().values()) == 1
    page = repr(show_claim(claims["fast"]))
    assert "recorded on box, 2026-01-02" in page
    assert "[1. Page: The claim](01_page.md#the-claim)" in page
    assert "for \\$2." in page, "a bare dollar would begin a formula"
    with pytest.raises(InvalidRequestError, match="no claim 'slow'; there is fast"):
        claims["slow"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('verdict = "measured here"', 'verdict = "true"', "claims.fast: verdict 'true' is none of measured here"),
        ('verdict = "measured here"', 'verdict = "does not hold"\nsize = 1', "claims.fast: unknown key 'size'"),
        ('verdict = "measured here"', 'verdict = "reproduced in simulation"', "needs evidence that is simulated"),
        ("#the-claim", "#the-clam", "claims.fast: 01_page.md has no section '#the-clam'; it has 1-page, the-claim"),
        ("01_page.md", "02_page.md", "claims.fast: the book has no page '02_page.md'"),
        ('["run", "x"]', '["run", "y"]', r"claims.fast.evidence\[0\]: run > y: no 'y' there; there is x"),
        ('["run", "x"]', '["ran", "x"]', "no results named 'ran'"),
        ("Ran {x} as", "Ran {y} as", r"\{x\} stands in numbers only"),
        ('by = "maker"', 'by = "seller"', "source 'seller' is not among"),
        ('by = "maker"', 'by = "maker"\nkind = "measured"', "a section, and nothing else, has a kind"),
        ('by = "maker"', "", r"claims.fast.evidence\[1\]: needs numbers, a source"),
        ('by = "maker"', 'section = "01_page.md#the-claim"\nkind = "measured"', "sources.maker: no claim cites it"),
        ("https://example.org/a", "file:///a", "sources.maker: url 'file:///a' is no web address"),
        ('rank = "primary"', 'rank = "first"', "sources.maker: rank 'first' is none of primary, secondary"),
        ('trust = "The maker\'s words."', "", "'sources.maker.trust' is missing"),
        ('date = "2026-01"', 'date = "January"', "sources.maker: date 'January' is not"),
        ("checked = 2026-11-26", "", "the file: has no checked"),
        ("checked = 2026-11-26", 'checked = "today"', "checked 'today' must be a date"),
        ("[claims.fast]", "[claims.fast", "claims.toml"),
        (CLAIM, CLAIM + CLAIM.replace("claims.fast", "claims.again"), "two have the title 'It is fast'"),
    ],
)
def test_what_is_not_sound_is_refused_by_its_place(tmp_path, old, new, told):
    assert old in GOOD
    with pytest.raises(CorruptFileError, match=told):
        load_claims(repository(tmp_path, GOOD.replace(old, new)))


def test_a_source_may_stand_beside_numbers_that_are_claimed_and_no_others(tmp_path):
    path = GOOD.replace(
        'of = ["run", "x"], unit = "×" } }', 'of = ["catalog", "h100", "memory_bytes"] } }\nby = "maker"'
    )
    line = load_claims(repository(tmp_path, path.replace("measured here", "confirmed by source")))["fast"].evidence[0]
    assert (line.text, line.source.key) == ("Ran 80 GB as fast.", "maker")
    with pytest.raises(CorruptFileError, match="its numbers are recorded, and no source's"):
        load_claims(repository(tmp_path / "b", GOOD.replace('unit = "×" } }', 'unit = "×" } }\nby = "maker"')))


def test_one_line_has_one_kind_of_number(tmp_path):
    two = GOOD.replace("Ran {x} as fast.", "Ran {x} as fast in {m}.").replace(
        'unit = "×" } }', 'unit = "×" }, m = { of = ["catalog", "h100", "memory_bytes"] } }'
    )
    with pytest.raises(CorruptFileError, match="its numbers are claimed and recorded: one kind a line"):
        load_claims(repository(tmp_path, two))


@pytest.fixture(scope="module")
def ledger():
    return load_claims(ROOT)


def test_the_books_ledger_is_sound_and_names_no_machine(ledger):
    assert len(ledger.claims) > 20
    shown = "\n".join(map(repr, (*map(show_claim, ledger), show_claim_sources(ledger))))
    for address in re.findall(r"\]\((.+?)\)", shown):
        assert address.startswith("https://") or (ROOT / "book" / address.partition("#")[0]).is_file(), address


def test_its_page_has_a_heading_and_a_cell_for_every_claim_in_order(ledger):
    page = (ROOT / "book" / "claims.md").read_text(encoding="utf-8")
    assert re.findall(r'^show_claim\(claims\["(.+)"\]\)$', page, re.MULTILINE) == [claim.key for claim in ledger]
    assert re.findall(r"^### (.+)$", page, re.MULTILINE) == [claim.title for claim in ledger]
    anchors = sections_of(ROOT / "book" / "claims.md")
    assert set(re.findall(r"\(#(.+?)\)", repr(show_summary(ledger)))) <= set(anchors)


def test_every_verdict_is_defined_and_counted(ledger):
    shown = repr(show_verdicts(ledger))
    for verdict, number in ledger.count().items():
        assert f"| {verdict} | {number} | {VERDICTS[verdict][0]} |" in shown
