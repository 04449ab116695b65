"""Provenance: what a results file must say, and that the four kinds of numbers stay apart."""

import json

import pytest

from miniserve.errors import CorruptFileError, InvalidRequestError
from miniserve.notebook import Measurement, load_results, status_box

GOOD = {
    "label": "recorded",
    "device": "NVIDIA H100 80GB HBM3",
    "date": "2026-11-20",
    "command": "miniserve bench ceilings",
    "versions": {"torch": "2.9.0"},
    "data": {"bandwidth_bytes_per_s": 3.1e12},
}


def save(folder, **changes):
    content = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    (folder / "run.json").write_text(json.dumps(content))


def test_a_good_file_is_read_with_its_provenance(tmp_path):
    save(tmp_path)
    run = load_results("run", tmp_path)
    assert run["bandwidth_bytes_per_s"] == 3.1e12
    assert run.provenance == "recorded on NVIDIA H100 80GB HBM3, 2026-11-20"
    with pytest.raises(InvalidRequestError, match=r"no 'latency_s'; it has bandwidth_bytes_per_s"):
        run["latency_s"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"device": None}, "missing device"),
        ({"command": None}, "missing command"),
        ({"label": "claimed"}, "missing source"),
        ({"label": "guessed"}, "none of measured, recorded"),
        ({"label": "measured"}, "made on the page"),
        ({"date": "yesterday"}, "not YYYY-MM-DD"),
    ],
)
def test_a_file_that_hides_where_it_comes_from_is_refused(tmp_path, changes, says):
    save(tmp_path, **changes)
    with pytest.raises(CorruptFileError, match=says) as caught:
        load_results("run", tmp_path)
    assert "run.json" in str(caught.value)


def test_a_missing_or_garbled_file_is_named(tmp_path):
    save(tmp_path)
    with pytest.raises(InvalidRequestError, match=r"no results named 'other'.*there is: run"):
        load_results("other", tmp_path)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(CorruptFileError, match=r"bad\.json: not JSON"):
        load_results("bad", tmp_path)


def test_the_status_box_says_each_kind_and_escapes():
    here = Measurement.here("<b>mine</b>", {"x": 1})
    claim = Measurement("claim", "claimed", "R100", "2026-01-05", {}, source="https://example.org/a?b&c")
    html = status_box(here, claim)._repr_html_()
    assert ">measured<" in html
    assert ">claimed<" in html
    assert "<b>" not in html
    assert 'href="https://example.org/a?b&amp;c"' in html
    with pytest.raises(InvalidRequestError):
        status_box()
