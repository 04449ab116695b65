"""A dry run of Colab: a venv that has torch already, one folder, and each notebook from its set-up cell to its end.

    python book/_tools/colab.py [--python python3.12] [--folder DIR] [files.ipynb]      or: make colab PYTHON=python3.12

As on Colab a notebook lies alone in a folder, what it needs is not installed, and its first cell fetches it. Two
things differ: the clone that this cell would fetch is already beside the notebook, made from the last commit here, so
that it need not be published; and there is no `google.colab`.

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
    """The bin folder of a venv with what Colab has, and beside it the clone that the notebooks would fetch."""
    run(python, "-m", "venv", folder / "venv").check_returncode()
    binaries = folder / "venv" / "bin"
    install = (binaries / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    for step in (
        (*install, *pins(THERE)),
        ("git", "clone", "--quiet", "--depth=1", f"file://{ROOT}", folder / "content" / "tokens-per-second"),
    ):
        done = run(*step)
        if done.returncode:
            fail(f"{' '.join(map(str, step))}\n{done.stderr}")
    return binaries


def fingerprint(binaries: Path) -> str:
    """A hash of torch's list of files, each with its own hash, and of which of NVIDIA's packages there are."""
    (packages,) = (binaries.parent / "lib").glob("python3.*/site-packages")
    (record,) = packages.glob("torch-*.dist-info/RECORD")
    nvidia = sorted(path.name for path in packages.glob("nvidia_*.dist-info"))
    when = str((packages / "torch" / "__init__.py").stat().st_mtime_ns)
    return hashlib.sha256("\n".join([record.read_text(encoding="utf-8"), when, *nvidia]).encode()).hexdigest()


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
        binaries = folder / "venv" / "bin"
        if not binaries.is_dir():
            binaries = made(given.python, folder)
        before = fingerprint(binaries)
        print(f"{run(binaries / 'python', '--version').stdout.strip()}, {pins(('torch',))[0]} there first", flush=True)
        failed = []
        for path in paths:
            lone = folder / "content" / path.name
            lone.write_bytes(path.read_bytes())
            began, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            done = run(binaries / "jupyter-execute", "--timeout=600", lone.name, cwd=lone.parent)
            now = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent = now.ru_utime + now.ru_stime - cpu.ru_utime - cpu.ru_stime
            same = fingerprint(binaries) == before
            verdict = "ok" if not done.returncode and same else "failed" if same else "torch is not what it was"
            print(f"{path.stem:28}{time.perf_counter() - began:6.0f} s {spent:6.0f} s of CPU  {verdict}", flush=True)
            if verdict != "ok":
                failed.append(f"{path.name}: {verdict}\n{done.stderr[-3000:]}")
    if failed:
        fail("\n\n".join(failed))


if __name__ == "__main__":
    main()
