"""The script that measures costs: what is a child's time, what an extra asks for, what a folder weighs. A second."""

import importlib
import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("costs")


def test_a_process_that_sleeps_takes_time_and_computes_little(script):
    found = script.timed((sys.executable, "-S", "-c", "import time; time.sleep(0.3)"))
    assert found["wall_s"] > 0.3 > found["cpu_s"] > 0


def test_a_command_that_fails_is_no_measurement(script):
    with pytest.raises(RuntimeError, match="no such thing"):
        script.timed((sys.executable, "-S", "-c", "raise SystemExit('no such thing')"))


def test_medians_are_of_each_figure(script):
    assert script.medians([{"a": 1, "b": 9}, {"a": 5, "b": 7}, {"a": 3, "b": 8}]) == {"a": 3, "b": 8}


def test_an_extra_asks_for_what_those_it_names_ask_for(script):
    project = {"dependencies": ["x"], "optional-dependencies": {"one": ["a>=1"], "two": ["miniserve[one]", "b"]}}
    assert script.requirements("two", project) == ["a>=1", "b"]
    assert script.requirements(None, project) == ["x"]


def test_pages_are_weighed_and_the_result_says_where_it_is_from(script, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    for name, size in (("a.html", 10), ("b.html", 30), ("c.html", 20), ("d.js", 5)):
        (site / name).write_bytes(b"x" * size)
    app = script.typer.Typer()
    app.command()(script.main)
    out = tmp_path / "costs.json"
    done = CliRunner().invoke(app, ["--parts", "pages", "--site", str(site), "--out", str(out)])
    assert done.exit_code == 0, done.output
    record = json.loads(out.read_text())
    assert (record["label"], record["data"]["pages"]["median_bytes"]) == ("recorded", 20)
    assert (record["data"]["pages"]["heaviest"], record["data"]["pages"]["site_bytes"]) == ("b.html", 65)
    assert CliRunner().invoke(app, ["--parts", "hopes", "--out", str(out)]).exit_code == 2
