"""A chapter's MyST source as a notebook's cells, without outputs: what `notebooks.py` runs and compares.

A notebook is the chapter with a Colab badge, a set-up cell, plain Markdown in place of MyST, Colab's metadata, and
stable cell ids (hashes of the cells' text). Nothing is run here.
"""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from book_config import Book
from nbformat import NotebookNode
from plain_markdown import Converter, Labels

#: Extras of the package: the imports that cannot be had without them, and a module that tells whether one is there.
EXTRAS = {
    "serve": (("from miniserve.server", "from miniserve.bench.serving.own_server"), "fastapi"),
    "bench": (("from miniserve.bench.serving", "import aiohttp"), "aiohttp"),
    "signing": (("from miniserve.registry.keys",), "cryptography"),
}
SETUP = """\
# @title Set-up: finds miniserve, or fetches it (about a minute on Colab). Run this first.
import importlib.util
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

REPOSITORY = "{repository}"
clone = Path("{name}").resolve()

if any(importlib.util.find_spec(module) is None for module in {modules}):
    if Path("../src/miniserve").is_dir():  # this notebook lies in a clone
        sys.path.insert(0, str(Path("../src").resolve()))
    else:
        if not clone.is_dir():
            git = ["git", "clone", "--quiet", "--depth=1", "--branch={branch}"]
            subprocess.run([*git, REPOSITORY, str(clone)], check=True)
        pins = []  # what is installed stays as it is, above all torch, which fits this machine's GPU driver
        for package in ("torch", "torchvision", "torchaudio", "numpy"):
            try:
                pins.append(f"{{package}}=={{version(package)}}")
            except PackageNotFoundError:
                pass
        (clone / "installed.txt").write_text("\\n".join(pins))
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(clone / "installed.txt")]
        subprocess.run([*pip, f"{{clone}}[{extras}]"], check=True)
        importlib.invalidate_caches()
if (clone / "book").is_dir():  # where recorded results and figures are
    os.chdir(clone / "book")
if "google.colab" in sys.modules:
    from google.colab import output

    output.enable_custom_widget_manager()  # for live sliders
import miniserve

print("miniserve", miniserve.__version__)"""


def convert(book: Book, document: str, labels: Labels) -> NotebookNode | None:
    """The notebook of `document`, without outputs; None if the document has no code."""
    text = book.source(document).read_text(encoding="utf-8")
    source = jupytext.reads(text, fmt="md:myst")
    if not any(cell.cell_type == "code" for cell in source.cells):
        return None
    name = book.repository.rsplit("/", 1)[-1]
    badge = (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({book.colab(document)}) "
        f"This notebook is a chapter of [{book.title}]({book.page('book/index')}); "
        f"[read it in the web book]({book.page(document)})."
    )
    extras, modules = _extras(text)
    setup = SETUP.format(repository=book.repository, branch=book.branch, name=name, extras=extras, modules=modules)
    cells = [nbformat.v4.new_markdown_cell(badge), nbformat.v4.new_code_cell(setup, metadata={"tags": ["setup"]})]
    converter = Converter(book, labels, document)
    for cell in source.cells:
        if cell.cell_type == "code":
            tags = cell.metadata.get("tags", [])
            cells.append(nbformat.v4.new_code_cell(cell.source, metadata={"tags": tags} if tags else {}))
        elif plain := converter.cell(cell.source):
            cells.append(nbformat.v4.new_markdown_cell(plain))
            if converter.attachments:
                cells[-1]["attachments"] = converter.attachments
    seen: Counter[str] = Counter()
    for cell in cells:
        _fold(cell)
        digest = hashlib.sha256(f"{document}\0{cell.cell_type}\0{cell.source}".encode()).hexdigest()[:8]
        seen[digest] += 1
        cell["id"] = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    return nbformat.v4.new_notebook(cells=cells, metadata=_metadata(document))


def _extras(text: str) -> tuple[str, str]:
    """What of the package a chapter needs, by what it imports; and the modules that must be there, as Python."""
    needed = {extra: module for extra, (imports, module) in EXTRAS.items() if any(each in text for each in imports)}
    modules = ", ".join(f'"{module}"' for module in ("miniserve", "anywidget", *needed.values()))
    return ",".join(("notebook", *needed)), f"({modules})"


def _fold(cell: NotebookNode) -> None:
    """Say "hidden" in the words of JupyterLab and of Colab, beside MyST's tags."""
    tags = set(cell.metadata.get("tags", []))
    if tags & {"setup", "hide-input", "hide-cell", "remove-input"}:
        cell.metadata["jupyter"] = {"source_hidden": True}
        cell.metadata["cellView"] = "form"
    if tags & {"hide-cell", "hide-output"}:
        cell.metadata.setdefault("jupyter", {})["outputs_hidden"] = True


def _metadata(document: str) -> dict[str, Any]:
    return {
        "accelerator": "GPU",
        "colab": {"gpuType": "T4", "name": Path(document).name, "provenance": [], "toc_visible": True},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
