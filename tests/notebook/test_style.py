"""Figures: deterministic SVG, ink that follows the page, ids that do not collide, colours with enough contrast."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from miniserve.errors import InvalidRequestError
from miniserve.notebook import COLORS

pytest.importorskip("matplotlib")


def figure(alt="A line that rises to three.", caption="Computed: a < b"):
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    from miniserve.notebook import label_lines, show_figure, use_book_style

    use_book_style()
    fig, ax = plt.subplots()
    ax.plot([1, 2, 3], label="one")
    ax.plot([1, 2, 3.01], label="two")
    label_lines(ax)
    return show_figure(fig, alt=alt, caption=caption)._repr_html_()


def test_equal_figures_are_equal_svg_that_follow_the_page():
    html = figure()
    assert html == figure()
    svg = re.search(r"<svg.*</svg>", html, re.DOTALL)[0]
    ET.fromstring(svg)
    assert "currentColor" in svg
    assert 'aria-label="A line that rises to three."' in svg
    assert "<dc:date>" not in svg
    assert "a &lt; b" in html
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    assert used <= set(re.findall(r'\bid="([^"]+)"', svg))


def test_two_figures_share_no_id():
    one, two = (
        set(re.findall(r'\bid="([^"]+)"', figure(alt))) for alt in ("A line that rises.", "The line again, alone.")
    )
    assert one
    assert not one & two


def test_labels_at_line_ends_do_not_overlap():
    heights = [float(y) for y in re.findall(r"translate\([\d.]+ ([\d.]+)\)[^>]*>(?:one|two)<", figure())]
    heights = heights or [float(y) for y in re.findall(r'y="([\d.]+)"[^>]*>(?:one|two)<', figure())]
    assert len(heights) == 2
    assert abs(heights[0] - heights[1]) > 8


def test_alt_must_say_something():
    with pytest.raises(InvalidRequestError, match="does not say what the figure shows"):
        figure("Figure 1")


def test_a_caption_begins_with_the_kind_of_its_numbers():
    with pytest.raises(InvalidRequestError, match="must begin with one of Measured, Recorded"):
        figure(caption="A fine figure.")


def test_ticks_are_written_out():
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    from miniserve.notebook.style import plain_ticks

    fig, (tokens, flops, error) = plt.subplots(1, 3)
    tokens.plot([0, 4000], [1, 50_000])
    tokens.set(yscale="log")
    flops.plot([1, 2], [1e3, 1e13])
    flops.set(yscale="log", yticks=[1e3, 1e6, 1e13])
    error.plot([1e-7, 1e-1], [0.1, 0.5])
    error.set(xscale="log")
    plain_ticks(fig)
    fig.canvas.draw()
    drawn = {
        name: {label.get_text() for label in labels}
        for name, labels in (
            ("tokens", tokens.get_yticklabels()),
            ("step", tokens.get_xticklabels()),
            ("flops", flops.get_yticklabels()),
            ("error", error.get_xticklabels()),
        )
    }
    plt.close(fig)
    assert {"1", "10", "100", "1,000", "10,000"} <= drawn["tokens"]
    assert {"0", "2,000", "4,000"} <= drawn["step"]
    assert drawn["flops"] == {"1k", "1M", "10T"}
    assert any("10^{-7}" in text for text in drawn["error"])


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_the_first_four_colours_read_on_white_and_on_the_dark_page():
    dark = luminance("#121212")
    for name in list(COLORS)[:4]:
        own = luminance(COLORS[name])
        assert 1.05 / (own + 0.05) > 3, name
        assert (own + 0.05) / (dark + 0.05) > 3, name


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, miniserve.notebook; print([m for m in ('torch', 'numpy', 'matplotlib', 'IPython') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
