"""A dry run of Colab: each notebook from its set-up cell to its end, in an environment of its own that has torch.

    python book/_tools/colab.py [--python python3.12] [--folder DIR] [files.ipynb]      or: make colab PYTHON=python3.12

As on Colab a notebook lies alone in a folder, what it needs is not installed, and its first cell fetches it: nothing
that an earlier notebook fetched is there. Two things differ: the clone that this cell would fetch is already beside the
notebook, made from the last commit here, so that it need not be published; and there is no `google.colab`.

Held for each notebook: every cell runs, "try it live" included; torch is, file by file, what it was before; nothing
that torch for CUDA brings along has come. Status 1 and the cell's error if not.
"""

import argparse
import hashlib
import os
import resource
import subprocess
import tempfile
import time
from pathlib import Path

from book_config import ROOT, Book, fail

#: What Colab has, as far as a chapter or its kernel needs it.
THERE = ("torch", "numpy", "matplotlib", "ipykernel", "ipywidgets", "nbclient")


def pins(names: tuple[str, ...]) -> list[str]:
    """`name==version` as requirements.txt has them."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    known = {line.partition("==")[0]: line for line in lines if "==" in line}
    return [known[name] for name in names]


def run(*command: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A command's output, as text, with no path to a package elsewhere; whether it failed is for the caller to see."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words = [str(part) for part in command]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd, env=clean)


def made(python: str, folder: Path) -> Path:
    """The packages of a venv with what Colab has, and beside it the clone that the notebooks would fetch."""
    venv = folder / "venv"
    clone = folder / "content" / "tokens-per-second"
    pip = (venv / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    for step in (
        (python, "-m", "venv", venv),
        (*pip, *pins(THERE)),
        ("git", "clone", "--quiet", "--depth=1", f"file://{ROOT}", clone),
    ):
        done = run(*step)
        if done.returncode:
            fail(f"{' '.join(map(str, step))}\n{done.stderr}")
    return packages(venv)


def packages(venv: Path) -> Path:
    """Where a venv keeps its packages."""
    (folder,) = (venv / "lib").glob("python3.*/site-packages")
    return folder


def fresh(there: Path, folder: Path) -> Path:
    """A venv in `folder` that sees the packages in `there` and adds its own beside them."""
    run(there.parents[2] / "bin" / "python", "-m", "venv", "--without-pip", folder).check_returncode()
    (packages(folder) / "there.pth").write_text(f"{there}\n", encoding="utf-8")
    return folder


def fingerprint(there: Path, added: Path) -> str:
    """A hash of torch's list of files, each with its hash, and of which of its and NVIDIA's packages there are."""
    (record,) = there.glob("torch-*.dist-info/RECORD")
    kin = [path.name for where in (there, added) for kind in ("torch*", "nvidia*") for path in where.glob(kind)]
    when = str((there / "torch" / "__init__.py").stat().st_mtime_ns)
    return hashlib.sha256("\n".join([record.read_text(encoding="utf-8"), when, *sorted(kin)]).encode()).hexdigest()


def executed(notebook: Path, folder: Path, there: Path) -> str:
    """Run a notebook; says what went wrong, or nothing."""
    venv = fresh(there, folder / "fresh" / notebook.stem)
    lone = folder / "content" / notebook.name
    lone.write_bytes(notebook.read_bytes())
    before = fingerprint(there, packages(venv))
    client = "import sys; from nbclient.cli import main; sys.argv[0] = 'jupyter-execute'; main()"
    done = run(venv / "bin" / "python", "-c", client, "--timeout=600", "--inplace", lone.name, cwd=lone.parent)
    if done.returncode:
        return done.stderr[-3000:]
    return "" if fingerprint(there, packages(venv)) == before else "torch is not what it was"


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Run the notebooks as Colab does.")
    parser.add_argument("files", nargs="*", type=Path, help="notebooks; all of the book's if none is given")
    parser.add_argument("--python", default="python3", help="the interpreter, as Colab may have it")
    parser.add_argument("--folder", type=Path, help="where to; kept, and gone on with if it is there")
    given = parser.parse_args()
    book = Book.read(ROOT)
    every = (book.source(name).with_suffix(".ipynb") for name in book.documents)
    paths = given.files or [path for path in every if path.exists()]
    with tempfile.TemporaryDirectory(prefix="colab-") as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        there = packages(folder / "venv") if (folder / "venv").is_dir() else made(given.python, folder)
        (torch,) = there.glob("torch-*.dist-info")
        print(f"{there.parent.name}, {torch.stem} there first", flush=True)
        failed = []
        for path in paths:
            began, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            wrong = executed(path, folder, there)
            now = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent = now.ru_utime + now.ru_stime - cpu.ru_utime - cpu.ru_stime
            verdict = "failed" if wrong else "ok"
            print(f"{path.stem:28}{time.perf_counter() - began:6.0f} s {spent:6.0f} s of CPU  {verdict}", flush=True)
            if wrong:
                failed.append(f"{path.name}: {wrong}")
    if failed:
        fail("\n\n".join(failed))


if __name__ == "__main__":
    main()
