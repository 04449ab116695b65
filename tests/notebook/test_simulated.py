"""Figures of simulations: they show what was counted, and are the same every time."""

import pytest

pytest.importorskip("matplotlib")

from matplotlib import rc_context
from matplotlib.figure import Figure

from miniserve.notebook.simulated import _seconds, overview, pareto, save, tornado
from miniserve.notebook.style import use_book_style
from miniserve.simulate.build import run
from miniserve.simulate.money import Swing
from miniserve.simulate.outage import Outage
from miniserve.simulate.pareto import Point
from miniserve.simulate.scenario import Engines, Scenario, Workload
from miniserve.simulate.timeline import Timeline


@pytest.fixture(autouse=True)
def style():
    with rc_context():
        use_book_style()
        yield


def simulated(number):
    workload = Workload(rate=50.0, input="50-500", output="5-30", requests=30)
    scenario = Scenario(
        "llama-3.1-8b", (Engines("h100", number),), workload, slo="ttft:500", outages=(Outage(0.1, 0, 0.2),)
    )
    timeline = Timeline(64)
    return run(scenario, timeline), timeline


def test_each_engine_has_its_line():
    cluster, timeline = simulated(2)
    *panels, latencies = overview(cluster, timeline).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["waiting", "running", "KV in use", "computing"]
    for axes, name in zip(panels, ("waiting", "running", "kv", "busy"), strict=True):
        assert [list(line.get_ydata()) for line in axes.get_lines()] == timeline.series(name).tolist()
        (shade,) = axes.patches
        assert shade.get_x() == pytest.approx(0.1)
        assert shade.get_width() == pytest.approx(0.2)
    curves = {line.get_label(): line for line in latencies.get_lines()}
    assert set(curves) >= {"ITL", "TPOT", "TTFT", "E2E"}
    assert all(curves[name].get_ydata()[-1] == pytest.approx(1) for name in ("ITL", "TTFT"))
    assert any(list(line.get_xdata()) == [0.5, 0.5] for line in latencies.get_lines())  # the limit


def test_many_engines_have_one_with_a_band():
    cluster, timeline = simulated(6)
    panel = overview(cluster, timeline).axes[1]
    (line,) = panel.get_lines()
    assert line.get_label() == "6 × engine"
    assert max(line.get_ydata()) <= timeline.series("running").max()
    assert len(panel.collections) == 1


def test_pareto_draws_the_frontier_and_the_rest():
    points = [Point(1, 100.0, 10.0, {}), Point(2, 90.0, 5.0, {}), Point(4, 50.0, 40.0, {})]
    axes = pareto({"here": points}).axes[0]
    others, best = axes.get_lines()
    assert list(others.get_xdata()) == [90.0]
    assert list(best.get_xdata()) == [100.0, 50.0]
    assert [text.get_text() for text in axes.texts] == ["1", "4"]


def test_files(tmp_path):
    cluster, timeline = simulated(1)
    for path in (tmp_path / "one.svg", tmp_path / "two.svg", tmp_path / "one.png"):
        save(overview(cluster, timeline), path)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("value", "text"), [(1e-5, "10 µs"), (0.1, "100 ms"), (10, "10 s")])
def test_times_in_words(value, text):
    assert _seconds(value, 0) == text


def test_a_tornado_s_bars_end_where_the_assumptions_do():
    axes = Figure().subplots()
    tornado(axes, [Swing("wide", 1.0, 9.0), Swing("$1 … $2", 6.0, 4.0)], 5.0)
    assert [bar.get_x() + bar.get_width() for bar in axes.patches] == pytest.approx([1.0, 9.0, 6.0, 4.0])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["wide", r"\$1 … \$2"]
    assert axes.yaxis_inverted()
