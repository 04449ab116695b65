"""Explorer: sliders over a Python function, with or without a kernel.

An `Explorer` evaluates a function on a grid when it is made. Its HTML embeds that grid and one small ES module
(`explorer.js`), so the sliders work in the static book, in Jupyter and in Colab alike; between grid points the value is
interpolated, and the display says so. `.live()` shows the same thing as a widget whose kernel computes exact values.

Invariants: the HTML depends on the function's values and the arguments alone (no addresses, no time, no random ids);
every number on the grid is finite; interpolation is linear in log space along `log` axes, and in the value too if the
Explorer has `log=True`. It draws one curve with one marker. It does not choose grids for you, but refuses one that is
too coarse: what a reader sees is within `tolerance` of the truth.
"""

import html
import itertools
import json
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from miniserve.errors import InvalidRequestError
from miniserve.notebook.live import make_widget
from miniserve.notebook.units import format_value


@cache
def module_source() -> str:
    """The text of `explorer.js`: the one module that every host runs."""
    return (Path(__file__).parent / "explorer.js").read_text(encoding="utf-8")


def _rounded(value: float, digits: int = 6) -> float:
    return float(f"{value:.{digits}g}")


@dataclass(frozen=True)
class Axis:
    """One slider: the range of one of the function's parameters.

    `log` spaces grid and slider by ratios. `integer` passes whole numbers only. `kinks` are values where the function
    bends (a roofline's ridge, a full cache): each becomes a grid point. `points` is the size of the grid, `stops` the
    number of slider positions. `Axis.of(1, 2, 4)` is a slider over just those values, not interpolated.

    Example:
        >>> from miniserve.notebook import Axis
        >>> Axis(1, 256, log=True, integer=True).at(0.5)
        16
        >>> Axis.of(1, 2, 4, 8, label="GPUs").values
        (1, 2, 4, 8)
    """

    lo: float
    hi: float
    label: str = ""
    unit: str = ""
    log: bool = False
    integer: bool = False
    kinks: tuple[float, ...] = ()
    points: int = 25
    stops: int = 100
    start: float | None = None
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Reject a range that cannot be drawn."""
        if self.values:
            if len(self.values) < 2 or list(self.values) != sorted(set(self.values)):
                raise InvalidRequestError(f"Axis.of needs two or more increasing values, got {self.values}")
            return
        if not (math.isfinite(self.lo) and math.isfinite(self.hi) and self.lo < self.hi):
            raise InvalidRequestError(f"Axis needs lo < hi, both finite, got lo={self.lo}, hi={self.hi}")
        if self.log and self.lo <= 0:
            raise InvalidRequestError(f"Axis with log=True needs lo > 0, got lo={self.lo}")
        if self.points < 2 or self.stops < 2:
            raise InvalidRequestError(f"Axis needs two or more points and stops, got {self.points} and {self.stops}")
        outside = [x for x in (*self.kinks, self.start) if x is not None and not self.lo <= x <= self.hi]
        if outside:
            raise InvalidRequestError(f"Axis from {self.lo} to {self.hi}: {outside[0]} is outside")

    @classmethod
    def of(cls, *values: float, label: str = "", unit: str = "", start: float | None = None) -> "Axis":
        """A slider over the given values only, e.g. `Axis.of(1, 2, 4, 8, label="GPUs")`."""
        if len(values) < 2:
            raise InvalidRequestError(f"Axis.of needs two or more increasing values, got {values}")
        return cls(values[0], values[-1], label, unit, start=start, values=tuple(values))

    def at(self, fraction: float) -> float:
        """The value a given fraction of the way along, as a reader would set it (whole if `integer`)."""
        value = self.lo * (self.hi / self.lo) ** fraction if self.log else self.lo + (self.hi - self.lo) * fraction
        return int(min(self.hi, max(self.lo, round(value)))) if self.integer else _rounded(value)

    def spread(self, count: int, *extra: float) -> list[float]:
        """`count` values from `lo` to `hi`, with `extra` added, increasing, without repeats."""
        if self.values:
            return list(self.values)
        ends = [self.lo, self.hi]
        return sorted({*ends, *(self.at(k / (count - 1)) for k in range(1, count - 1)), *extra})

    def as_json(self, name: str) -> dict[str, Any]:
        """What the ES module needs of it."""
        stops = self.spread(self.stops + 1, *self.kinks, *(() if self.start is None else (self.start,)))
        start = self.start if self.start is not None else stops[len(stops) // 2]
        if start not in stops:
            raise InvalidRequestError(f"Axis {name!r}: start={start} is not one of its values {stops}")
        return {
            "name": name,
            "label": self.label or name.replace("_", " ").capitalize(),
            "unit": self.unit,
            "log": self.log,
            "discrete": bool(self.values),
            "grid": self.spread(self.points, *self.kinks),
            "stops": stops,
            "start": start,
        }


class Explorer:
    """Sliders over `fn(**axes) -> float`; the first axis is also the x axis of the curve.

    `label` and `unit` name the value; `log=True` draws and interpolates it in log space (then it must be positive).
    `reference=("SLO", 0.05)` draws a dashed line. Units that take SI prefixes are in `units.SI_UNITS`.
    `tolerance` is the largest `grid_error` allowed; it is checked when the Explorer is made.

    Raises `InvalidRequestError` when the function is not finite (or not positive with `log=True`) at a grid point.

    Example:
        >>> from miniserve.notebook import Axis, Explorer
        >>> explorer = Explorer(
        ...     lambda batch, tokens: batch * tokens * 36864, title="KV cache", label="Size", unit="B", log=True,
        ...     batch=Axis(1, 256, log=True, integer=True), tokens=Axis(128, 8192, log=True, integer=True),
        ... )
        >>> explorer.exact([8, 1024])
        301989888.0
    """

    def __init__(
        self,
        fn: Callable[..., float],
        *,
        title: str,
        label: str,
        unit: str = "",
        log: bool = False,
        reference: tuple[str, float] | None = None,
        tolerance: float = 0.02,
        **axes: Axis,
    ) -> None:
        """Evaluate the grid: one call of `fn` per grid point, and 200 more to check it."""
        if not axes:
            raise InvalidRequestError(f"Explorer {title!r} needs at least one Axis")
        if log and reference and reference[1] <= 0:
            raise InvalidRequestError(f"Explorer {title!r}: with log=True the reference must be positive")
        self.fn, self.axes, self.log = fn, axes, log
        described = [axis.as_json(name) for name, axis in axes.items()]
        self.start: list[float] = [axis["start"] for axis in described]
        self.grid: dict[str, Any] = {
            "title": title,
            "output": {"label": label, "unit": unit, "log": log},
            "axes": described,
            "reference": None if reference is None else {"label": reference[0], "value": reference[1]},
            "data": [_rounded(self._checked(point), 7) for point in itertools.product(*(a["grid"] for a in described))],
        }

        if not math.isinf(tolerance) and (error := grid_error(self)) > tolerance:
            raise InvalidRequestError(
                f"Explorer {title!r}: interpolation is off by up to {error:.1%}, more than tolerance={tolerance:.1%}; "
                "give an axis kinks=, more points= or log=True"
            )

    def exact(self, values: Sequence[float]) -> float:
        """`fn` at `values`, one for each axis in order."""
        return float(self.fn(**dict(zip(self.axes, values, strict=True))))

    def _checked(self, point: Sequence[float]) -> float:
        value = self.exact(point)
        if not math.isfinite(value) or (self.log and value <= 0):
            where = ", ".join(f"{name}={x:g}" for name, x in zip(self.axes, point, strict=True))
            raise InvalidRequestError(
                f"Explorer: the function is {value} at {where}; narrow the axes or mend the function"
            )
        return value

    def interpolate(self, values: Sequence[float]) -> float:
        """What the static page shows at `values`: the same arithmetic as `explorer.js`."""
        corners = [(0, 1.0)]
        for axis, value in zip(self.grid["axes"], values, strict=True):
            grid, log = axis["grid"], axis["log"]
            i = min(max(bisect_right(grid, value) - 1, 0), len(grid) - 2)
            lo, hi = (math.log(grid[i]), math.log(grid[i + 1])) if log else (grid[i], grid[i + 1])
            t = min(1.0, max(0.0, ((math.log(value) if log else value) - lo) / (hi - lo)))
            corners = [(o * len(grid) + i + k, w * u) for o, w in corners for k, u in ((0, 1 - t), (1, t)) if w * u]
        data = self.grid["data"]
        if self.log:
            return math.exp(sum(w * math.log(data[o]) for o, w in corners))
        return float(sum(w * data[o] for o, w in corners))

    def __repr__(self) -> str:
        out = self.grid["output"]
        where = ", ".join(
            f"{a['label']} {format_value(v, a['unit'])}" for a, v in zip(self.grid["axes"], self.start, strict=True)
        )
        return f"{self.grid['title']}: {out['label']} {format_value(self.exact(self.start), out['unit'])} at {where}"

    def _repr_html_(self) -> str:
        # "</" would end the script element early, whatever it stands in.
        data = json.dumps(self.grid, separators=(",", ":"), sort_keys=True, ensure_ascii=False).replace("</", "<\\/")
        return (
            f'<div class="ms-explorer-host"><p>{html.escape(repr(self))}</p>'
            f'<script type="application/json">{data}</script></div>\n'
            f'<script type="module">\n{module_source()}\nmountAll(document);\n</script>'
        )

    def live(self) -> Any:
        """The same sliders as a widget: the kernel recomputes exact values. Needs the extra `notebook`."""
        return make_widget(self, module_source())


def grid_error(explorer: Explorer, samples: int = 200, seed: int = 0) -> float:
    """The largest relative error of the interpolation at random points off the grid, against the exact function.

    Points are drawn as a reader could set them. Where the value passes through zero, the error is taken relative to a
    hundredth of the largest value on the grid.
    """
    rng = random.Random(seed)
    floor = 0.0 if explorer.log else max(map(abs, explorer.grid["data"])) / 100
    worst = 0.0
    for _ in range(samples):
        point = [rng.choice(a.values) if a.values else a.at(rng.random()) for a in explorer.axes.values()]
        exact = explorer.exact(point)
        error, scale = abs(explorer.interpolate(point) - exact), max(abs(exact), floor)
        worst = max(worst, error / scale if scale else error)
    return worst
