"""Fixtures of the book's tests: the built site, and a server for it.

The site is built once a session, with warnings as errors, unless `MINISERVE_SITE` names a built one.
"""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "book" / "_tools")]  # the tools are scripts, not a package


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The folder of the built site."""
    if given := os.environ.get("MINISERVE_SITE"):
        if not (Path(given) / "index.html").is_file():
            pytest.fail(f"MINISERVE_SITE={given} holds no index.html: build the book there or unset it")
        return Path(given).resolve()
    out = tmp_path_factory.mktemp("site")
    command = [
        Path(sys.executable).parent / "jupyter-book",
        "build",
        ".",
        "--path-output",
        out,
        "-W",
        "-n",
        "--keep-going",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        log = re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr)
        told = [line for line in log.splitlines() if re.search(r"WARNING:|ERROR:", line)]
        told += [path.read_text()[-2000:] for path in sorted(out.rglob("*.err.log"))]
        pytest.fail("the book does not build; `make book-html` shows all of it:\n" + "\n".join(told or [log[-3000:]]))
    return out / "_build" / "html"


@pytest.fixture(scope="session")
def server(site) -> Iterator[str]:
    """The site's address on this machine, ending in a slash."""
    from serve import serve

    with serve(site) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}/"
        running.shutdown()


@pytest.fixture(scope="session")
def artifacts() -> Path:
    """Where screenshots are kept for people to look at."""
    folder = ROOT / "artifacts" / "book"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
