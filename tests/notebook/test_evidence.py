"""A number of the ledger is the one that its file holds; a path that leads nowhere says so."""

import json

import pytest

from miniserve.errors import InvalidRequestError
from miniserve.hardware.catalog import load_catalog
from miniserve.notebook.evidence import Number, Shelf

DATA = {"rows": [{"kind": "a", "s": 0.5}, {"kind": "b", "s": 2.0}, {"kind": "b", "s": 4.0}], "word": "x", "share": 0.25}


@pytest.fixture
def shelf(tmp_path):
    for label in ("recorded", "simulated"):
        run = {"label": label, "device": "box", "date": "2026-01-02", "command": "make", "data": DATA}
        (tmp_path / f"{label}.json").write_text(json.dumps(run))
    return Shelf(tmp_path)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (Number(["recorded", "rows", {"kind": "a"}, "s"], unit="s"), "500 ms"),
        (Number(["recorded", "rows", 1, "s"], ["recorded", "rows", 0, "s"], "×"), "4×"),
        (Number(["recorded", "rows", {}, "s"], unit="s", pick="most"), "4 s"),
        (Number(["recorded", "rows", {"kind": "b"}, "s"], ["recorded", "rows", 0, "s"], "×", "least"), "4×"),
        (Number(["recorded", "share"], unit="%"), "25%"),
        (Number(["recorded", "share"], unit="plain"), "0.25"),
        (Number(["catalog", "rubin", "memory_bandwidth_bytes_per_s", "also", 0]), "19.4 TB/s"),
        (Number(["catalog", "lpx", "num_accelerators"], unit="plain"), "256"),
        (Number(["published", "claim", "tokens_per_s", 0], ["published", "claim", "tokens_per_s", 1], "×"), "66.7×"),
    ],
)
def test_it_is_read_where_it_stands(shelf, number, text):
    assert shelf.text(number) == text


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (Number(["recorded", "rows", {"kind": "b"}, "s"], unit="s"), "leads to 2 numbers"),
        (Number(["recorded", "rows", {"kind": "c"}, "s"], unit="s"), "no row has {'kind': 'c'}"),
        (Number(["recorded", "row"], unit="s"), "no 'row' there; there is rows, word, share"),
        (Number(["recorded", "rows", 9, "s"], unit="s"), "no 9 there"),
        (Number(["recorded", "word"], unit="s"), "'x' is not a number"),
        (Number(["recorded", "share"]), "has no unit"),
        (Number(["nothing", "share"], unit="s"), "no results named 'nothing'"),
        (Number(["catalog", "h900", "memory_bytes"]), "no entry 'h900'"),
        (Number(["catalog", "h100", "memory"]), "h100 has no 'memory'"),
        (Number(["catalog", "h100", "memory_bytes", "also", 7]), "0 other sources"),
        (Number(["catalog", "h100"]), "a path into the catalogue is"),
    ],
)
def test_a_path_that_leads_nowhere_says_where_it_ends(shelf, number, told):
    with pytest.raises(InvalidRequestError, match=told.replace("{", r"\{").replace("[", r"\[")):
        shelf.text(number)


def test_a_ratio_of_two_kinds_is_refused(shelf):
    assert shelf.label(Number(["catalog", "h100", "memory_bytes"])) == "claimed"
    with pytest.raises(InvalidRequestError, match="its two sides are recorded and simulated"):
        shelf.label(Number(["recorded", "share"], ["simulated", "share"], "×"))


def test_an_origin_names_device_and_mark(shelf):
    assert shelf.origin(["recorded", "share"]) == "results/recorded.json, recorded on box, 2026-01-02"
    assert shelf.origin(["catalog", "gb300", "usd_per_hour.hyperscaler_tco"]) == "catalogue: gb300, analyst"
    origin = shelf.origin(["published", "mlperf", {"hardware": "gb300", "model": "llama-3.1-405b"}, "offline"])
    assert origin.startswith("[MLPerf Inference v5.1")
    assert origin.endswith("), MLCommons, 2025-09-09")


def test_another_catalogue_gives_another_number(shelf, tmp_path):
    price = load_catalog().accelerator("h200").usd_per_hour["hyperscaler_tco"].value
    assert shelf.value(Number(["catalog", "h200", "usd_per_hour.hyperscaler_tco"])) == price
