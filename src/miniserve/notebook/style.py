"""Plot style of the book: SVG, no background, colours that survive colour blindness, legible on light and dark pages.

`use_book_style()` sets matplotlib up; `label_lines(ax)` names lines at their ends instead of in a legend;
`show_figure(fig, alt=..., caption=...)` puts the figure into the page as inline SVG whose ink follows the page's text
colour, whose alternative text says what it shows and whose caption begins with the kind of its numbers. `COLOR_OF` is
what a colour means in every chapter; `COLORS` are the hues for what has no meaning of its own. The SVG of equal data is
equal: ids come from a fixed salt, and no date is written. It draws nothing by itself and holds no figure open.
"""

import hashlib
import html
import io
import re
import sys
from typing import TYPE_CHECKING, Any

from miniserve.errors import InvalidRequestError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: After Okabe and Ito, the blue lightened; first those that reach a contrast of 3 on white and on the dark page alike.
COLORS = {
    "blue": "#0a84c6",
    "vermilion": "#d55e00",
    "green": "#009e73",
    "purple": "#cc79a7",
    "orange": "#e69f00",
    "sky": "#56b4e9",
}
#: Text, axes and ticks: a grey that reads on white and on black alike; `show_figure` makes it the page's own colour.
INK = "#6f7780"

#: What a colour means, in every figure of the book. Two meanings of one colour never meet in a figure.
COLOR_OF = {
    "limit": INK,  # a roof, a bound, a prediction: dashed; the line of no change: dotted
    "engine": COLORS["vermilion"],  # what was measured, beside its limit
    "recompute": COLORS["vermilion"],
    "cache": COLORS["blue"],
    "prefill": COLORS["blue"],
    "decode": COLORS["green"],
    "weights": COLORS["blue"],
    "KV": COLORS["green"],
    "dense": COLORS["blue"],
    "mixture": COLORS["vermilion"],
    "better": COLORS["green"],
    "worse": COLORS["vermilion"],
    # GPUs by their generation; two of one generation differ in their lines
    "Ampere": COLORS["green"],
    "Hopper": COLORS["blue"],
    "Blackwell": COLORS["vermilion"],
    "Rubin": COLORS["purple"],
    # number formats
    "FP32": INK,
    "TF32": COLORS["sky"],
    "BF16": COLORS["blue"],
    "FP16": COLORS["vermilion"],
    "FP8": COLORS["purple"],
    "INT8": COLORS["green"],
    "FP4": COLORS["orange"],
}
#: Less, even, more: the ends and the middle of a colour map that white numbers read on.
HEAT = ("#0b5394", "#6b737c", "#b3261e")
#: How a caption begins: what kind of numbers the figure shows. `Shown` is for drawings, which have none.
KINDS = ("Measured", "Recorded", "Simulated", "Computed", "Claimed", "Shown")
_SALT = "tokens-per-second"
_ONE_PANEL = 610  # pixels: a wider figure would have letters too small for a phone, and scrolls there instead
_NEAR_EDGE = 0.12  # of the axes' width: a line that ends closer to the right edge has its label beyond it


def use_book_style() -> None:
    """Set matplotlib's defaults for this session; in IPython, also make SVG the only format. Safe to call twice."""
    import matplotlib as mpl
    from cycler import cycler

    mpl.rcParams.update(
        {
            "svg.hashsalt": _SALT,
            "svg.fonttype": "none",  # text stays text: small files, and the reader's own font size and zoom
            "figure.figsize": (5.8, 3.3),
            "figure.facecolor": "none",
            "figure.constrained_layout.use": True,
            "savefig.facecolor": "none",
            "savefig.transparent": True,
            "axes.facecolor": "none",
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "axes.titlecolor": INK,
            "axes.titlelocation": "left",
            "axes.titlesize": 11,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": cycler(color=list(COLORS.values())),
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": INK,
            "grid.alpha": 0.25,
            "grid.linewidth": 0.7,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "lines.linewidth": 2.2,
            "lines.markersize": 5,
            "legend.frameon": False,
            "legend.handlelength": 2.6,  # long enough for dash and dot
            "font.size": 10.5,
        }
    )
    if "IPython" in sys.modules and (shell := sys.modules["IPython"].get_ipython()) is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        shell.run_line_magic("matplotlib", "inline")
        set_matplotlib_formats("svg", metadata={"Date": None, "Creator": None})  # type: ignore[no-untyped-call]


def label_lines(ax: "Axes", *, gap_points: float = 12.0) -> None:
    """Write each line's label beside its last point, in its colour, pushed apart vertically so that none overlap.

    The label of a line that ends near the right edge stands beyond the edge, clear of grid and axis. Lines whose label
    starts with an underscore are left out, as in a legend. Call it last: it reads the axes' limits.
    """
    import numpy as np

    figure = ax.get_figure(root=True)
    if figure is None:
        raise InvalidRequestError("label_lines: these axes belong to no figure")
    plain_ticks(figure)
    figure.canvas.draw()
    to_points = 72.0 / figure.dpi
    right, near = ax.bbox.x1 * to_points, _NEAR_EDGE * ax.bbox.width * to_points
    ends = []
    for line in ax.get_lines():
        xs, ys = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
        if len(xs) and not str(line.get_label()).startswith("_"):
            across, height = (float(v) * to_points for v in ax.transData.transform((xs[-1], ys[-1])))
            to_edge = right - across if 0 <= right - across < near else 0.0
            ends.append((height, to_edge, float(xs[-1]), float(ys[-1]), line))
    floor = float("-inf")
    for height, to_edge, x, y, line in sorted(ends, key=lambda end: end[0]):
        floor = max(height, floor + gap_points)
        ax.annotate(
            str(line.get_label()),
            (x, y),
            xytext=(6 + to_edge, floor - height),
            textcoords="offset points",
            va="center",
            color=line.get_color(),
            annotation_clip=False,
        )


def plain_ticks(figure: "Figure") -> None:
    """Numbers along axes as the book writes them: 1,000 and, on an axis that reaches a million, 10M, never 10⁷.

    A chapter's own ticks stay as they are, and so does a log axis that goes below 0.0001, where powers read better.
    """
    from matplotlib.ticker import LogFormatter, LogFormatterSciNotation, ScalarFormatter, StrMethodFormatter

    class Plain(LogFormatter):
        """Which ticks get a number is matplotlib's choice; how it is written is ours."""

        def __call__(self, x: float, pos: int | None = None) -> str:
            shown = super().__call__(x, pos)
            return _tick(x, prefixes=max(self.axis.get_view_interval()) >= 1e6) if shown else ""  # type: ignore[union-attr]

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for which in ("major", "minor"):
                old = getattr(axis, f"get_{which}_formatter")()
                if type(old) is LogFormatterSciNotation and low >= 1e-4:
                    getattr(axis, f"set_{which}_formatter")(Plain(labelOnlyBase=old.labelOnlyBase))
                elif type(old) is ScalarFormatter and max(-low, high) >= 1000:
                    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _tick(value: float, *, prefixes: bool) -> str:
    if prefixes:
        for power, prefix in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
            if abs(value) >= 10**power:
                return f"{value / 10**power:g}{prefix}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


class FigureOutput:
    """A finished figure, as HTML with inline SVG; `repr` is its alternative text."""

    def __init__(self, svg: str, alt: str, caption: str) -> None:
        """Keep the parts; `svg` is trusted, `alt` and `caption` are escaped."""
        self.svg, self.alt, self.caption = svg, alt, caption

    def __repr__(self) -> str:
        return f"[Figure: {self.alt}]"

    def _repr_html_(self) -> str:
        caption = f"<figcaption>{html.escape(self.caption)}</figcaption>"
        picture = self.svg
        if "min-width" in picture:  # on a phone it is wider than the page
            region = f'tabindex="0" role="region" aria-label="{html.escape(self.caption)}"'
            picture = f'<div style="overflow-x:auto" {region}>{picture}</div>'
        return f'<figure class="ms-figure" style="margin:0.5rem 0">{picture}{caption}</figure>'


def show_figure(fig: "Figure", *, alt: str, caption: str) -> FigureOutput:
    """The figure as inline SVG; end a cell with it. `alt` says what the figure shows, not that it is one. Closes `fig`.

    `caption` begins with the kind of its numbers: Measured, Recorded, Simulated, Computed, Claimed; a drawing: Shown.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> from miniserve.notebook import label_lines, show_figure
        >>> fig, ax = plt.subplots()
        >>> _ = ax.plot([1, 64, 256], [100, 5000, 6000], label="tokens/s")
        >>> label_lines(ax)
        >>> show_figure(fig, alt="Throughput rises with batch size and levels off at 64.", caption="Recorded: decode.")
        [Figure: Throughput rises with batch size and levels off at 64.]
    """
    import matplotlib.pyplot as plt

    if len(alt.split()) < 3:
        raise InvalidRequestError(f"show_figure: alt={alt!r} does not say what the figure shows; write a sentence")
    if not caption.startswith(KINDS):
        raise InvalidRequestError(f"show_figure: caption={caption!r} must begin with one of {', '.join(KINDS)}")
    plain_ticks(fig)
    buffer = io.StringIO()
    metadata: dict[str, Any] = {"Date": None, "Creator": None}
    fig.savefig(buffer, format="svg", metadata=metadata, bbox_inches="tight", transparent=True)
    plt.close(fig)
    return FigureOutput(_inline(buffer.getvalue(), alt), alt, caption)


def _inline(svg: str, alt: str) -> str:
    """Trim the XML prologue, make ids unique to this figure, let ink follow the page, add the alternative text."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    key = "f" + hashlib.sha256((svg + alt).encode()).hexdigest()[:8]
    svg = re.sub(r'(\bid="|\bhref="#|url\(#)', rf"\g<1>{key}-", svg)
    svg = svg.replace(INK, "currentColor").replace(INK.upper(), "currentColor")
    size = re.match(r'<svg[^>]*?\bwidth="([\d.]+)pt"', svg)
    pixels = float(size.group(1)) * 4 / 3 if size else 0.0
    width = f"width:{pixels:.0f}px;max-width:100%" if pixels else "width:100%"
    if pixels > _ONE_PANEL:
        width += f";min-width:{0.7 * pixels:.0f}px"
    head = f'<svg role="img" aria-label="{html.escape(alt)}" style="{width};height:auto" '
    return head + re.sub(r'\s(?:width|height)="[\d.]+pt"', "", svg.removeprefix("<svg ").lstrip(), count=2)
