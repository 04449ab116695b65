"""Generate `book/NN_name.ipynb` from `book/NN_name.md`: the notebooks that Colab, JupyterLab and nbval run.

    python book/_tools/notebooks.py [files.md]            convert, execute, write where something changed
    python book/_tools/notebooks.py --check [files.md]    convert only, compare; status 1 and what to run if stale
    python book/_tools/notebooks.py --force [files.md]    write even where only unchecked outputs differ
    python book/_tools/notebooks.py --text [files.md]     prose alone changed: run nothing, keep the stored outputs

A notebook is the chapter's cells (`chapter_cells.py`) and their stored outputs, without PNG copies, timings, widget
state or stderr. Cells tagged `skip-execution` ("try it live") are not run here or in the web build; nbval runs them.

**What counts as a difference.** Everything except the outputs of unchecked cells: those hold timings, which differ
with each run. So writing leaves a notebook alone when its cells, metadata and *checked* outputs (comment `#
NBVAL_CHECK_OUTPUT` or tag `nbval-check-output`) are as stored; a second run changes nothing. `--check` runs no
kernel: it compares cells and metadata, and holds that stored outputs are there and clean. That checked outputs are
still true is nbval's job.
"""

import argparse
import os
import re
import sys
import time
from itertools import zip_longest
from pathlib import Path
from typing import Any

import nbclient
import nbformat
from book_config import ROOT, Book, BookError, fail
from chapter_cells import convert
from nbformat import NotebookNode
from plain_markdown import Labels

REMEDY = "run `make notebooks` and commit the result"
#: Stands for a cell that the other notebook lacks: its source equals none.
NO_CELL = NotebookNode(source=None)
WIDGET = "application/vnd.jupyter.widget-view+json"


def is_checked(cell: NotebookNode) -> bool:
    """Whether nbval compares the cell's output with the stored one."""
    return "# NBVAL_CHECK_OUTPUT" in cell.source or "nbval-check-output" in cell.metadata.get("tags", [])


def execute(notebook: NotebookNode, folder: Path, name: str, *, src: Path) -> None:
    """Run every cell in `folder`, in a kernel that sees `src`, and leave clean outputs. Says how far it is."""
    total = sum(cell.cell_type == "code" for cell in notebook.cells)
    done = 0

    def say(**_: Any) -> None:
        nonlocal done
        done += 1
        if sys.stderr.isatty():
            print(f"\r{name}: cell {done} of {total} ", end="", file=sys.stderr, flush=True)

    metadata = dict(notebook.metadata)
    client = nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(folder)}},
        on_cell_executed=say,
    )
    paths = [str(src), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        client.execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    except nbclient.exceptions.CellExecutionError as error:
        plain = re.sub(r"\x1b\[[\d;]*m", "", str(error))  # without the terminal's colours
        raise BookError(f"{name}.md: a cell raises; mend it there, then {REMEDY}\n{plain}") from None
    notebook.metadata = nbformat.from_dict(metadata)  # the client adds the Python version it ran
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [_clean(output, name) for output in cell.outputs if output.get("name") != "stderr"]


def _clean(output: NotebookNode, name: str) -> NotebookNode:
    data = output.get("data", {})
    if WIDGET in data:
        raise BookError(f"{name}.md: a cell shows a widget; tag it skip-execution, or show the Explorer itself")
    if len(set(data) - {"text/plain"}) > 1:
        data.pop("image/png", None)
    return output


def compare(fresh: NotebookNode, stored: NotebookNode, *, outputs: bool) -> list[str]:
    """What differs, in words; `outputs` compares checked outputs too."""
    differs = []
    if fresh.metadata != stored.metadata:
        differs.append("the notebook's metadata differ")
    if [cell.id for cell in fresh.cells] != [cell.id for cell in stored.cells]:
        old = {cell.id for cell in stored.cells}
        new = next((cell.source.strip() for cell in fresh.cells if cell.id not in old), "")
        first = new.splitlines()[0] if new else ""
        return [*differs, f"a cell is new or changed: {first[:70]!r}" if first else "cells were removed or moved"]
    for a, b in zip(fresh.cells, stored.cells, strict=True):
        if (a.source, a.metadata, a.get("attachments")) != (b.source, b.metadata, b.get("attachments")):
            differs.append(f"cell {a.id} differs from its source")
        if outputs and is_checked(a) and a.outputs != b.outputs:
            differs.append(f"the checked output of cell {a.id} changed")
    return differs


def unclean(stored: NotebookNode) -> list[str]:
    """What a stored notebook must not have, or lacks."""
    problems = [] if "widgets" not in stored.metadata else ["widget state is stored"]
    for cell in stored.cells:
        if cell.cell_type != "code":
            continue
        kinds = {key for output in cell.outputs for key in output.get("data", {})}
        if (
            cell.execution_count is None
            and "skip-execution" not in cell.metadata.get("tags", [])
            and cell.source.strip()
        ):
            problems.append(f"cell {cell.id} has not been executed")
        if WIDGET in kinds or "execution" in cell.metadata:
            problems.append(f"cell {cell.id} stores a widget or timings")
    return problems


def check(book: Book, document: str, labels: Labels) -> list[str]:
    """Why the stored notebook of `document` is stale; empty if it is not. Runs no kernel."""
    path = book.source(document).with_suffix(".ipynb")
    fresh = convert(book, document, labels)
    if fresh is None:
        return ["it exists, but its .md has no code cell: delete it"] if path.exists() else []
    if not path.exists():
        return ["it does not exist"]
    stored = nbformat.read(path, as_version=4)
    return compare(fresh, stored, outputs=False) + unclean(stored)


def rewrite(book: Book, document: str, labels: Labels) -> str:
    """Write the notebook with the outputs that it has; refuses if its code is no longer what made them."""
    path = book.source(document).with_suffix(".ipynb")
    fresh = convert(book, document, labels)
    if fresh is None:
        return "no code, no notebook"
    stored = nbformat.read(path, as_version=4)
    new, old = ([cell for cell in notebook.cells if cell.cell_type == "code"] for notebook in (fresh, stored))
    pairs = zip_longest(new, old, fillvalue=NO_CELL)
    changed = [
        a.source for a, b in pairs if a.source != b.source and "setup" not in a.get("metadata", {}).get("tags", [])
    ]
    if changed:
        raise BookError(f"{document}: code has changed, outputs must be made anew: {str(changed[0])[:70]!r}")
    for a, b in zip(new, old, strict=True):
        a.outputs, a.execution_count = b.outputs, b.execution_count
    fresh.metadata = stored.metadata
    fresh = nbformat.reads(nbformat.writes(fresh), as_version=4)
    if fresh == stored:
        return "unchanged"
    path.write_text(nbformat.writes(fresh) + "\n", encoding="utf-8")
    return "written, nothing was run"


def write(book: Book, document: str, labels: Labels, *, force: bool = False) -> str:
    """Convert, execute, and write if something that counts changed. Returns what happened."""
    source = book.source(document)
    fresh = convert(book, document, labels)
    if fresh is None:
        return "no code, no notebook"
    began = time.perf_counter()
    execute(fresh, source.parent, source.stem, src=book.root / "src")
    took = f"{time.perf_counter() - began:.0f} s"
    path = source.with_suffix(".ipynb")
    # Through text and back: what was read and what was made must be of one form before they are compared.
    fresh = nbformat.reads(nbformat.writes(fresh), as_version=4)
    if path.exists() and not force:
        stored = nbformat.read(path, as_version=4)
        if not compare(fresh, stored, outputs=True) + unclean(stored):
            return f"unchanged ({took})"
    path.write_text(nbformat.writes(fresh) + "\n", encoding="utf-8")
    return f"written ({took})"


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Generate the book's notebooks from its MyST sources.")
    parser.add_argument("files", nargs="*", type=Path, help="chapters (.md); all of _toc.yml if none is given")
    parser.add_argument("--check", action="store_true", help="compare, write nothing, run nothing")
    parser.add_argument("--force", action="store_true", help="write even where only unchecked outputs differ")
    parser.add_argument("--text", action="store_true", help="prose alone changed: keep the stored outputs, run nothing")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    try:
        book = Book.read(given.root)
        labels = Labels.read(book)
        names = [path.resolve().relative_to(book.root.resolve()).with_suffix("").as_posix() for path in given.files]
        stale = []
        for document in names or book.documents:
            if given.check:
                stale += [f"{document}.ipynb: {problem}" for problem in check(book, document, labels)]
            elif given.text:
                print(f"{document}: {rewrite(book, document, labels)}", flush=True)
            else:
                print(f"\r{document}: {write(book, document, labels, force=given.force)}", flush=True)
    except (BookError, FileNotFoundError) as error:
        fail(str(error))
    if stale:
        fail("\n".join(stale) + f"\nThe notebooks do not match their sources: {REMEDY}.")
    if given.check:
        print("The notebooks match their sources.")


if __name__ == "__main__":
    main()
