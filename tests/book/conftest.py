"""Fixtures of the book's tests: the built site, a server for it, and a real Chromium.

The site is built once a session, with warnings as errors, unless `MINISERVE_SITE` names a built one. Chromium is Debian's, or the
one that `CHROMIUM` names; without it the browser's tests are skipped with a plain message, except in CI, where they fail.
"""

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "book" / "_tools")]  # the tools are scripts, not a package

# Nothing but the page itself may use the network, and a container has no sandbox and little shared memory.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def skip_or_fail(reason: str) -> None:
    """A machine may lack a browser; CI may not."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(reason)
    pytest.skip(reason)


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
def browser():
    """A Chromium driven by playwright."""
    executable = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not executable or not shutil.which(executable):
        skip_or_fail("no Chromium here: install Debian's `chromium`, or name one in CHROMIUM")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        skip_or_fail("playwright is not installed: pip install -r requirements.txt")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def artifacts() -> Path:
    """Where screenshots are kept for people to look at."""
    folder = ROOT / "artifacts" / "book"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
