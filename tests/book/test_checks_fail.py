"""The checks, broken on purpose: each fault makes its check fail, with a message that says what to do. No browser, no build."""

import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat
import pytest

from book.check_html import check
from book.test_notebooks import nbval

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "book" / "_tools" / "notebooks.py"
HEADER = """\
---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

"""
CHAPTER = (
    HEADER
    + "# 1. Tiny\n\nA {term}`Token`, as {cite:t}`kwon2023pagedattention` say.\n\n"
    + textwrap.dedent("""\
    ```{code-cell} ipython3
    :tags: [nbval-check-output]

    6 * 7
    ```
    """)
)


@pytest.fixture
def tiny(tmp_path) -> Path:
    """A book of one chapter."""
    (tmp_path / "book").mkdir()
    for name in ("_config.yml", "book/references.bib"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"))
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: book/index\nchapters:\n- file: book/01_tiny\n")
    (tmp_path / "book" / "index.md").write_text("# Index\n")
    (tmp_path / "book" / "01_tiny.md").write_text(CHAPTER)
    (tmp_path / "src").symlink_to(ROOT / "src")
    return tmp_path


def notebooks(root: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, TOOL, "--root", root, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def page(folder: Path, body: str) -> list[str]:
    (folder / "index.html").write_text(f'<html><body id="top">{body}</body></html>')
    return check(folder)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('<img src="gone.png" alt="A curve that rises">', "gone.png is missing: mend the link, or add the file"),
        ('<a href="nowhere.html">x</a>', "nowhere.html is missing: mend the link"),
        ('<a href="#nowhere">x</a>', "no such anchor: mend it"),
        (
            '<img src="https://example.org/a.png" alt="A curve that rises">',
            "from another site: vendor it under book/_static",
        ),
        ('<script src="//example.org/a.js"></script>', "from another site"),
        ('<link rel="stylesheet" href="https://example.org/a.css">', "from another site"),
        ('<iframe src="https://example.org/"></iframe>', "from another site"),
        ('<p style="background:url(https://example.org/a.png)">', "loads from another site"),
        ('<img src="a/b.png" alt="a/b.png">', "no alternative text: add `:alt:`"),
        ('<svg role="img"></svg>', "no aria-label"),
    ],
)
def test_a_bad_page_is_caught(tmp_path, body, says):
    problems = page(tmp_path, body)
    assert any(says in problem and problem.startswith("index.html: ") for problem in problems), problems


def test_a_good_page_passes_and_a_font_from_elsewhere_does_not(tmp_path):
    assert not page(tmp_path, '<a href="#top">up</a><a href="https://example.org">out</a>')
    (tmp_path / "a.css").write_text("@font-face{src:url('https://example.org/f.woff')}")
    assert "a.css: loads https://example.org/f.woff" in check(tmp_path)[0]


def test_notebooks_are_stable_and_a_stale_one_is_caught(tiny):
    missing = notebooks(tiny, "--check")
    assert missing.returncode == 1
    assert "01_tiny.ipynb: it does not exist" in missing.stderr
    assert "written" in notebooks(tiny).stdout
    first = (tiny / "book" / "01_tiny.ipynb").read_bytes()
    assert "unchanged" in notebooks(tiny).stdout
    assert (tiny / "book" / "01_tiny.ipynb").read_bytes() == first
    assert notebooks(tiny, "--check").returncode == 0

    source = tiny / "book" / "01_tiny.md"
    source.write_text(CHAPTER.replace("6 * 7", "6 * 8"))
    stale = notebooks(tiny, "--check")
    assert stale.returncode == 1
    assert "a cell is new or changed: '6 * 8'" in stale.stderr
    assert "run `make notebooks` and commit the result" in stale.stderr

    # nbval sees a checked output that is no longer true.
    path = tiny / "book" / "01_tiny.ipynb"
    path.write_bytes(first.replace(b'"42"', b'"41"'))
    ran = nbval(tiny / "book" / "01_tiny.ipynb", cwd=tiny)
    assert ran.returncode == 1
    assert "1 failed" in ran.stdout


def test_outputs_outlive_changed_prose_and_nothing_else(tiny):
    assert notebooks(tiny).returncode == 0
    path, source = tiny / "book" / "01_tiny.ipynb", tiny / "book" / "01_tiny.md"
    path.write_text(path.read_text().replace('"42"', '"stored"'))

    source.write_text(source.read_text().replace("as {cite:t}", "as, first, {cite:t}"))
    assert "nothing was run" in notebooks(tiny, "--text").stdout
    text = path.read_text()
    assert "as, first," in text
    assert '"stored"' in text

    source.write_text(source.read_text().replace("6 * 7", "6 * 8"))
    refused = notebooks(tiny, "--text")
    assert refused.returncode == 1
    assert "'6 * 8'" in refused.stderr
    assert path.read_text() == text


def test_a_cell_that_raises_is_caught_by_both(tiny):
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")]), tiny / "book" / "01_tiny.ipynb"
    )
    ran = nbval(tiny / "book" / "01_tiny.ipynb", cwd=tiny)
    assert ran.returncode == 1
    assert "ZeroDivisionError" in ran.stdout
    source = tiny / "book" / "01_tiny.md"
    source.write_text(CHAPTER.replace("6 * 7", "1 / 0"))
    raised = notebooks(tiny)
    assert raised.returncode == 1
    assert "01_tiny.md: a cell raises; mend it there" in raised.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{cite}`nobody1999`", "cites 'nobody1999', which is not in book/references.bib"),
        ("```{figure} gone.svg\n:alt: A box.\n```", "gone.svg is missing"),
        ("```{figure} gone.svg\n```", "has no :alt: text"),
        ("```{mermaid}\na-->b\n```", "the directive {mermaid} has no plain-Markdown form"),
        ("{guilabel}`x`", "the role {guilabel}`x` has no plain-Markdown form"),
        ("A {term}`KV\ncache`.", "keep it on one line"),
        ("```{note}\nnever closed", "is never closed"),
    ],
)
def test_text_that_a_notebook_cannot_show_is_named(tiny, text, says, capsys):
    from notebooks import main

    (tiny / "book" / "01_tiny.md").write_text(CHAPTER + "\n" + text + "\n")
    with pytest.raises(SystemExit):
        main(["--root", str(tiny), "--check"])
    told = capsys.readouterr().err
    assert says in told
    assert "book/01_tiny.md" in told
