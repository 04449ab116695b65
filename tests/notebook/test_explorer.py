"""Explorer: the arithmetic, what it refuses, and that its HTML is safe, deterministic and the same in Python and JavaScript."""

import json
import math
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from miniserve.errors import InvalidRequestError
from miniserve.notebook import Axis, Explorer, format_value, grid_error
from miniserve.notebook.explorer import module_source
from miniserve.notebook.live import evaluate


def roofline(intensity, bandwidth):
    return min(1e15, intensity * bandwidth)


def power_law(tolerance: float = 0.02, **axes: Axis) -> Explorer:
    axes = axes or {"x": Axis(1, 1000, log=True), "y": Axis(0.1, 10, log=True)}
    return Explorer(lambda x, y: 3 * x**1.5 / y, title="Power", label="Value", log=True, tolerance=tolerance, **axes)


def embedded(explorer: Explorer) -> dict:
    return json.loads(re.search(r'application/json">(.*?)</script>', explorer._repr_html_(), re.DOTALL)[1])


def test_a_power_law_is_exact_between_grid_points():
    assert grid_error(power_law(), samples=300) < 1e-5


def test_a_linear_function_is_exact_on_linear_axes():
    explorer = Explorer(lambda a, b: 2 * a - 3 * b + 1, title="t", label="v", a=Axis(0, 7), b=Axis(-2, 5))
    for point in ([0.3, 0.1], [6.9, -1.7], [7, 5]):
        assert explorer.interpolate(point) == pytest.approx(explorer.exact(point), rel=1e-6)


def test_a_kink_on_the_grid_removes_the_error():
    def step(x):
        return max(x, 37.0)

    without = Explorer(step, title="t", label="v", log=True, x=Axis(1, 100, log=True, points=8), tolerance=math.inf)
    with_kink = Explorer(step, title="t", label="v", log=True, x=Axis(1, 100, log=True, points=8, kinks=(37,)))
    assert grid_error(without) > 0.05
    assert grid_error(with_kink) < 1e-5


def test_grid_error_sees_a_grid_that_is_too_coarse():
    coarse = {"fn": lambda x: 2 + math.sin(x), "title": "t", "label": "v", "x": Axis(0, 30, points=5)}
    assert grid_error(Explorer(**coarse, tolerance=math.inf)) > 0.2
    with pytest.raises(InvalidRequestError, match=r"interpolation is off by up to .*kinks="):
        Explorer(**coarse)


def test_integer_axes_pass_integers_and_discrete_axes_only_their_values():
    seen = []

    def record(n, gpus):
        seen.append((n, gpus))
        return 1.0

    Explorer(record, title="t", label="v", n=Axis(1, 64, log=True, integer=True), gpus=Axis.of(1, 2, 4))
    assert all(isinstance(n, int) and gpus in (1, 2, 4) for n, gpus in seen)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Axis(5, 1), "lo < hi"),
        (lambda: Axis(0, 1, log=True), "lo > 0"),
        (lambda: Axis(1, 2, kinks=(3,)), "outside"),
        (lambda: Axis.of(3, 1), "increasing"),
        (lambda: Axis.of(1), "two or more"),
        (lambda: Explorer(lambda: 1, title="t", label="v"), "at least one Axis"),
        (lambda: Explorer(lambda x: x, title="t", label="v", log=True, x=Axis(-1, 1)), "is -1.0 at x=-1"),
        (lambda: Explorer(lambda x: math.inf, title="t", label="v", x=Axis(0, 1)), "is inf at x=0"),
        (lambda: Explorer(lambda x: x, title="t", label="v", x=Axis.of(1, 2, start=3)), "start=3"),
    ],
)
def test_what_cannot_be_drawn_is_an_error_that_says_why(make, says):
    with pytest.raises(InvalidRequestError, match=re.escape(says)):
        make()


def test_html_is_the_same_every_time_and_holds_no_address():
    assert power_law()._repr_html_() == power_law()._repr_html_()
    assert repr(power_law()) == repr(power_law())
    assert " at 0x" not in power_law()._repr_html_() + repr(power_law())


def test_text_from_the_author_cannot_leave_its_element():
    nasty = "</script><img src=x onerror=alert(1)>&\"'"
    html = Explorer(lambda x: x, title=nasty, label=nasty, unit=nasty, x=Axis(1, 2, label=nasty))._repr_html_()
    assert "</script><img" not in html
    assert "<img" not in html.split('<script type="application/json">')[0]
    assert html.count("</script>") == 2
    assert json.loads(re.search(r'json">(.*?)</script>', html, re.DOTALL)[1])["title"] == nasty


def test_the_module_can_stand_in_a_page():
    assert "</script" not in module_source()
    assert "http" not in module_source().replace("http://www.w3.org/2000/svg", "")


def test_start_is_a_stop_of_the_slider():
    grid = embedded(Explorer(lambda n: n, title="t", label="v", n=Axis(1, 4096, log=True, integer=True, start=17)))
    assert grid["axes"][0]["start"] == 17
    assert 17 in grid["axes"][0]["stops"]


def test_live_messages_are_exact_and_carry_errors():
    explorer = Explorer(roofline, title="t", label="v", intensity=Axis(1, 900), bandwidth=Axis.of(1e12, 1.5e12))
    message = evaluate(explorer, [123.0, 1.5e12])
    assert message["value"] == roofline(123.0, 1.5e12)
    assert len(message["curve"]) == len(message["xs"]) == len(explorer.grid["axes"][0]["grid"]) + 1
    explorer.fn = lambda **_: 1 / 0
    assert evaluate(explorer, [1.0, 1.0])["error"].startswith("ZeroDivisionError")


def test_the_widget_answers_with_exact_values():
    pytest.importorskip("anywidget")
    explorer = power_law()
    widget = explorer.live()
    widget.values = [2.5, 0.7]
    assert widget.exact["value"] == explorer.exact([2.5, 0.7])


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.01234, "s", "12.3 ms"),
        (1.98e12, "B/s", "1.98 TB/s"),
        (999.96, "B", "1 kB"),
        (0, "s", "0 s"),
        (2048, "tokens", "2,048 tokens"),
        (0.1534, "$/M tokens", "$0.153/M tokens"),
        (40, "%", "40%"),
        (3.456, "×", "3.46×"),
        (-12345.6, "", "-12,346"),
        (math.inf, "s", "inf s"),
    ],
)
def test_format_value(value, unit, text):
    assert format_value(value, unit) == text


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here; the browser's tests run the module too")
def test_javascript_formats_and_interpolates_as_python_does(tmp_path: Path):
    rng = random.Random(1)
    values = [0.0, 1000, 999.5, 1e-7] + [rng.choice((-1, 1)) * 10 ** rng.uniform(-6, 14) for _ in range(200)]
    units = ["", "s", "B/s", "%", "$/h", "tokens"]
    explorers = [power_law(), power_law(math.inf, x=Axis(1, 50, integer=True), y=Axis.of(1, 2, 5))]
    points = [
        [[a.values[0] if a.values else a.at(rng.random()) for a in e.axes.values()] for _ in range(50)]
        for e in explorers
    ]
    (tmp_path / "explorer.mjs").write_text(module_source())
    (tmp_path / "in.json").write_text(json.dumps([values, units, [e.grid for e in explorers], points]))
    script = """import {formatValue, interpolate} from "./explorer.mjs"; import fs from "fs";
const [values, units, grids, points] = JSON.parse(fs.readFileSync("in.json"));
console.log(JSON.stringify([values.map(v => units.map(u => formatValue(v, u))),
                            grids.map((g, i) => points[i].map(p => interpolate(g, p)))]));"""
    (tmp_path / "run.mjs").write_text(script)
    done = subprocess.run(["node", "run.mjs"], cwd=tmp_path, capture_output=True, text=True, check=True)
    texts, numbers = json.loads(done.stdout)
    assert texts == [[format_value(v, u) for u in units] for v in values]
    for explorer, where, got in zip(explorers, points, numbers, strict=True):
        assert got == pytest.approx([explorer.interpolate(p) for p in where], rel=1e-9)
