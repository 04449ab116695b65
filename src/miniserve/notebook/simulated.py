"""Figures of simulations, in the book's style: what engines did over time, how long requests took, speed and yield.

Call `use_book_style()` first. A figure is returned, not shown: `show_figure` puts it into a page, `save` into a file.
Of a few engines each has a line; of more, each kind has its median and a band from the least to the most.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from miniserve.notebook.style import COLORS, INK
from miniserve.simulate.cluster import Cluster
from miniserve.simulate.money import Swing
from miniserve.simulate.pareto import Point, frontier
from miniserve.simulate.timeline import Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW = 4
PANELS = {"waiting": "waiting", "running": "running", "kv": "KV in use", "busy": "computing"}
SHARES = ("kv", "busy")
UNITS = {86400.0: "days", 3600.0: "hours", 60.0: "minutes", 0.0: "seconds"}
HUES = tuple(COLORS.values())


def overview(cluster: Cluster, timeline: Timeline) -> "Figure":
    """Of a cluster that has run: four panels over time, and the distributions of its latencies."""
    figure = _figure(7.2, 7.6)
    heights = [1, 1, 1, 1, 1.9]
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    over_time = [figure.add_subplot(grid[0])]
    over_time += [figure.add_subplot(grid[row], sharex=over_time[0]) for row in range(1, len(PANELS))]
    draw_timeline(over_time, cluster, timeline)
    draw_latencies(figure.add_subplot(grid[-1]), cluster)
    return figure


def draw_timeline(panels: "Sequence[Axes]", cluster: Cluster, timeline: Timeline) -> None:
    """Queue, batch, KV and use of each engine or kind of engines, a panel each; outages are shaded."""
    unit_s = next(size for size in UNITS if timeline.end_s >= 2 * size)
    times = timeline.times_s() / (unit_s or 1.0)
    for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
        for at, (label, rows) in enumerate(_groups(timeline.names).items()):
            values = timeline.series(name)[rows]
            color = HUES[at % len(HUES)]
            axes.plot(times, np.median(values, axis=0), color=color, label=label, linewidth=1.4)
            if len(rows) > 1:
                axes.fill_between(times, values.min(0), values.max(0), color=color, alpha=0.25, linewidth=0)
        for outage in cluster.outages:
            begin = outage.at_s / (unit_s or 1.0)
            axes.axvspan(begin, begin + outage.seconds / (unit_s or 1.0), color=INK, alpha=0.2, linewidth=0)
        axes.set_title(title, fontsize=10)
        if name in SHARES:
            axes.set_ylim(0, 1.04)
            axes.yaxis.set_major_formatter("{x:.0%}")
        else:
            axes.set_ylim(bottom=0)
        axes.tick_params(labelbottom=axes is panels[-1])
    panels[0].set_xlim(0, timeline.end_s / (unit_s or 1.0))
    panels[-1].set_xlabel(UNITS[unit_s])
    if len(_groups(timeline.names)) > 1:
        _legend_above(panels[0])


def draw_latencies(axes: "Axes", cluster: Cluster) -> None:
    """The share of requests, or of tokens, that took no longer; dotted: the limits of the SLO."""
    tally = cluster.tally
    sketches = {"ITL": tally.itl, "TPOT": tally.tpot, "TTFT": tally.ttft, "E2E": tally.e2e}
    limits = cluster.slo.as_dict()
    for (name, sketch), color in zip(sketches.items(), HUES, strict=False):
        if not sketch.count:
            continue
        values, shares = sketch.shares()
        axes.step(np.maximum(values, 1e-5), shares, where="post", color=color, label=name, linewidth=1.8)
        if (limit_s := limits.get(f"{name.lower()}_s")) is not None:
            axes.axvline(limit_s, color=color, linestyle=":", linewidth=1.4)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_seconds)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set_title("share that took no longer", fontsize=10)
    _legend_above(axes)


def pareto(curves: Mapping[str, Sequence[Point]]) -> "Figure":
    """Yield of a device against a user's speed: each curve's points, and the frontier that they make."""
    figure = _figure(7.0, 4.2)
    draw_pareto(figure.subplots(), curves)
    return figure


def draw_pareto(axes: "Axes", curves: Mapping[str, Sequence[Point]]) -> None:
    """See `pareto`. Numbers at points are users at once."""
    for at, (label, points) in enumerate(curves.items()):
        color, best = HUES[at % len(HUES)], frontier(points)
        others = [point for point in points if point not in best]
        for some, form, options in ((others, "o", {"alpha": 0.35}), (best, "o-", {"label": label})):
            speeds, yields = [point.speed for point in some], [point.throughput for point in some]
            axes.plot(speeds, yields, form, color=color, **options)
        for point in best:
            text = f"{point.concurrency:,}"
            axes.annotate(text, (point.speed, point.throughput), (5, 5), textcoords="offset points", fontsize=8.5)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens/s a user")
    axes.set_ylabel("output tokens/s a device")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="upper right")


def tornado(axes: "Axes", rows: Sequence[Swing], base: float) -> None:
    """A bar from the one end of each assumption to the other, the first on top; the line is the case in the middle."""
    for at, row in enumerate(rows):
        for end, color in ((row.low, COLORS["green"]), (row.high, COLORS["vermilion"])):
            axes.barh(at, end - base, left=base, height=0.6, color=color, linewidth=0)
    axes.axvline(base, color=INK, linewidth=1)
    names = [row.name.replace("$", r"\$") for row in rows]  # a dollar, and no formula
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")


def save(figure: "Figure", path: Path) -> None:
    """As SVG or PNG, by the path's ending. The same figure gives the same SVG."""
    if path.suffix == ".svg":
        figure.savefig(path, metadata={"Date": None, "Creator": None}, transparent=True)
    else:
        figure.savefig(path, dpi=160, transparent=True)


def _figure(width: float, height: float) -> "Figure":
    """Without pyplot, which would keep it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _legend_above(axes: "Axes") -> None:
    axes.legend(ncols=FEW, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.1, fontsize=9)


def _groups(names: Sequence[str]) -> dict[str, list[int]]:
    """Lines: of each engine, or of each kind."""
    if len(names) <= FEW:
        return {name: [at] for at, name in enumerate(names)}
    groups: dict[str, list[int]] = {}
    for at, name in enumerate(names):
        groups.setdefault(name.split()[0], []).append(at)
    return {f"{len(rows)} × {kind}": rows for kind, rows in groups.items()}


def _seconds(value: float, _position: float) -> str:
    return f"{value:g} s" if value >= 1 else f"{value * 1e3:g} ms" if value >= 1e-3 else f"{value * 1e6:g} µs"
