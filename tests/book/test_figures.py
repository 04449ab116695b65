"""The chapters' figures speak one visual language (book/CONTRIBUTING.md): colours by name, a caption and a text each."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from miniserve.notebook.style import COLOR_OF, COLORS

BOOK = Path(__file__).parents[2] / "book"
CHAPTERS = sorted(
    path for path in BOOK.glob("*.md") if path.name != "CONTRIBUTING.md" and "{code-cell}" in path.read_text()
)
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COLOR_ARGUMENTS = {
    "color",
    "c",
    "fc",
    "ec",
    "mfc",
    "mec",
    "facecolor",
    "edgecolor",
    "markerfacecolor",
    "markeredgecolor",
}
#: No colour at all, and the one for numbers on `HEAT`.
ALLOWED = {"none", "white"}


def cells(text: str) -> Iterator[tuple[int, ast.Module]]:
    """Each code cell with its line in the page; cells with magics are left out."""
    for found in CELL.finditer(text):
        body = re.sub(r"\A---\n.*?^---\n|\A(?::[^\n]*\n)+", "", found[1], flags=re.DOTALL | re.MULTILINE)
        try:
            tree = ast.parse(body)
        except SyntaxError:
            continue
        yield text[: found.start()].count("\n") + 1, tree


def faults(text: str) -> list[str]:
    """What a page's figures do otherwise than the book."""
    wrong = []
    for line, tree in cells(text):
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if re.fullmatch(r"#[0-9a-fA-F]{6}|C\d", node.value):
                    wrong.append(
                        f"cell at line {line}: the colour {node.value!r}: take it from COLOR_OF, COLORS or INK"
                    )
            elif (
                isinstance(node, ast.Subscript)
                and isinstance(node.value, ast.Name)
                and isinstance(node.slice, ast.Constant)
            ):
                names = {"COLORS": COLORS, "COLOR_OF": COLOR_OF}.get(node.value.id)
                if names is not None and node.slice.value not in names:
                    wrong.append(f"cell at line {line}: {node.value.id} has no {node.slice.value!r}")
            elif isinstance(node, ast.Call):
                wrong += [f"cell at line {line}: {fault}" for fault in _faults_of_call(node)]
    return wrong


def _faults_of_call(call: ast.Call) -> Iterator[str]:
    given = {word.arg: word.value for word in call.keywords}
    for name in COLOR_ARGUMENTS & given.keys():
        value = given[name]
        if isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value not in ALLOWED:
            yield f"{name}={value.value!r}: take it from COLOR_OF, COLORS or INK"
    if isinstance(call.func, ast.Name) and call.func.id == "show_figure":
        yield from (f"show_figure without {name}" for name in ("alt", "caption") if name not in given)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_figures_speak_one_language(path):
    assert faults(path.read_text()) == []


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ('hue = "#6f7780"', "the colour '#6f7780'"),
        ('ax.plot(x, y, color="grey")', "color='grey'"),
        ('ax.plot(x, y, c="C3")', "the colour 'C3'"),
        ('ax.plot(x, y, color=COLOR_OF["moon"])', "COLOR_OF has no 'moon'"),
        ('show_figure(fig, alt="It rises.")', "show_figure without caption"),
    ],
)
def test_what_is_refused(code, fault):
    assert any(fault in each for each in faults(f"```{{code-cell}} ipython3\n:tags: [hide-input]\n\n{code}\n```\n"))
