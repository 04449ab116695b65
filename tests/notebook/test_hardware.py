"""The catalogue as the book shows it: nothing lost, nothing unmarked, nothing that breaks the page."""

import re
from pathlib import Path

import pytest

from miniserve.hardware import catalog_file
from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.catalog_file import read_catalog
from miniserve.hardware.figures import MARKS, Figure, Source
from miniserve.notebook.hardware import (
    Table,
    card_rows,
    figure_text,
    overview_row,
    quantity_text,
    show_accelerators,
    show_cards,
    show_marks,
    show_sources,
    show_systems,
    show_tiers,
    system_sums,
)

CATALOG_FILE = Path(catalog_file.__file__).with_name("catalog.toml")
SOURCE = Source("s", "A <title>", "Maker", "https://example.org/?a=1&b=2", "2026")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("memory_bytes", "memory"),
        ("memory_bandwidth_bytes_per_s", "memory bandwidth"),
        ("achieved_bandwidth_bytes_per_s", "memory bandwidth, achieved"),
        ("dense_flops.fp8", "fp8, dense"),
        ("usd_per_hour.hyperscaler_tco", "hyperscaler tco, price"),
        ("stated.fp4_flops", "fp4, stated for the whole"),
        ("num_sms", "SMs"),
        ("l2_bytes", "L2 cache"),
    ],
)
def test_quantities_in_words(name, words):
    assert quantity_text(name) == words


@pytest.mark.parametrize(
    ("name", "value", "unit", "text"),
    [
        ("memory_bandwidth_bytes_per_s", 3.35e12, "B/s", "3.35 TB/s"),
        ("compute_capability", 10.0, "", "10.0"),
        ("exp_per_s", 10.7e12, "/s", "10.7 × 10¹²/s"),
        ("usd_per_hour.rental_3yr", 1.6, "$/h", "$1.6/h"),
    ],
)
def test_values_with_units(name, value, unit, text):
    assert figure_text(name, Figure(value, unit, SOURCE, "vendor")) == text


def test_every_quantity_of_the_catalogue_has_words_and_a_value():
    catalog = load_catalog()
    for entry in [*catalog, *catalog.tiers.values()]:
        for words, value, figure in card_rows(entry):
            assert "_" not in words + value
            assert "e+" not in value
            assert len(value) < 25
            assert figure.mark


def test_an_overview_marks_every_number():
    cells = overview_row(load_catalog().accelerator("groq-lpu1"))
    assert cells[:2] == ["0.23 S", "80,000 S"]
    assert set(cells[2:6]) == {"-"}


def test_sums_are_those_of_the_system():
    system = load_catalog().system("lpx")
    assert dict(system_sums(system)) == {
        "memory": "128 GB",
        "memory bandwidth": "38.4 PB/s",
        "link bandwidth": "320 TB/s",
        "fp8, dense": "307 PFLOP/s",
    }


def test_the_pages_parts_hold_every_entry_and_link_every_source():
    catalog = load_catalog()
    overview = show_accelerators(catalog.accelerators.values(), "All")._repr_html_()
    systems = show_systems(catalog.systems.values(), "Systems")._repr_html_()
    tiers = show_tiers(catalog.tiers.values(), "Tiers")._repr_html_()
    cards = show_cards([*catalog, *catalog.tiers.values()])._repr_html_()
    sources = show_sources(catalog.sources.values())._repr_html_()
    for entry in catalog:
        assert f'<th scope="row">{entry.key}</th>' in overview + systems
        assert f"<summary>{entry.name}</summary>" in cards
    for tier in catalog.tiers.values():
        assert ", ".join(tier.accelerators) in tiers
        assert f"<summary>{tier.name.replace(chr(39), '&#x27;')}</summary>" in cards
    for source in catalog.sources.values():
        address = source.url.replace("&", "&amp;")
        assert f'href="{address}"' in cards
        assert f'href="{address}"' in sources
    for page in (overview, systems, tiers, cards, sources):
        assert page.count("<table") == page.count("</table>")
        assert len(re.findall(r"<tr[ >]", page)) == page.count("</tr>")


def test_what_changes_in_the_file_changes_on_the_page(tmp_path):
    text = CATALOG_FILE.read_text(encoding="utf-8")
    old = 'hyperscaler_tco = { value = 2.652, note = "a placeholder: 1.2 × GB200" }'
    assert text.count(old) == 1
    (tmp_path / "catalog.toml").write_text(text.replace(old, "hyperscaler_tco = 9.87"), encoding="utf-8")
    before, after = (show_cards(read_catalog(file))._repr_html_() for file in (CATALOG_FILE, tmp_path / "catalog.toml"))
    assert ("$9.87/h" in before, "$9.87/h" in after) == (False, True)


@pytest.mark.parametrize(
    ("key", "quantity", "value", "mark"),
    [
        ("rubin", "memory bandwidth", "22 TB/s", "preliminary"),
        ("rubin", "or", "19.4 TB/s", "preliminary"),
        ("rubin", "fp4, dense", "35 PFLOP/s", "preliminary"),
        ("rubin", "fp4, sparse", "50 PFLOP/s", "preliminary"),
        ("rubin-ultra", "memory", "1 TB", "preliminary"),
        ("bluefield-4", "memory", "128 GB", "preliminary"),
        ("groq-lp30", "memory", "500 MB", "preliminary"),
        ("tpu7x", "memory", "206 GB", "vendor"),
        ("trainium3", "memory", "155 GB", "vendor"),
        ("mi355x", "memory", "288 GB", "vendor"),
        ("gb300", "hyperscaler tco, price", "$2.65/h", "analyst"),
    ],
)
def test_the_cards_say_who_vouches_for_a_number(key, quantity, value, mark):
    rows = [(words, text, figure.mark) for words, text, figure in card_rows(load_catalog().accelerator(key))]
    assert (quantity, value, mark) in rows


def test_the_legend_counts_every_number():
    figures = [figure for entry in load_catalog() for _, figure in entry.all_figures()]
    table = show_marks(figures)
    assert [row[1] for row in table.rows] == list(MARKS)
    assert sum(int(row[3]) for row in table.rows) == len(figures)


def test_what_could_be_markup_is_text():
    assert "A &lt;title&gt;" in show_sources([SOURCE])._repr_html_()
    assert "?a=1&amp;b=2" in show_sources([SOURCE])._repr_html_()
    assert 'aria-label="&quot;x&quot;"' in Table('"x"', ("a",), [("b",)])._repr_html_()


def test_text_stands_in_for_html():
    catalog = load_catalog()
    assert repr(show_cards(catalog)).splitlines()[0] == "t4: NVIDIA T4"
    assert repr(show_sources(catalog.sources.values())) == f"Sources of the catalogue: {len(catalog.sources)} rows"
