"""A real Chromium driven by playwright, and what is asked of every page in it.

Chromium is Debian's, or the one that `CHROMIUM` names; without it the browser's tests are skipped with a plain message,
except in CI, where they fail.
"""

import contextlib
import os
import shutil
from pathlib import Path

import pytest

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
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


def skip_or_fail(reason: str) -> None:
    """A machine may lack a browser; CI may not."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextlib.contextmanager
def chromium():
    """One that runs."""
    executable = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not executable or not shutil.which(executable):
        skip_or_fail("no Chromium here: install Debian's `chromium`, or name one in CHROMIUM")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        skip_or_fail("playwright is not installed: pip install -r requirements.txt")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield running
        running.close()


def violations(tab, rules: list[str] | None = None) -> list[tuple[str, str, str]]:
    """What axe-core finds in a page: the rule and what it asks, where, and the piece of HTML. `rules`: by these alone."""
    axe = pytest.importorskip("axe_core_python")
    tab.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    options = {"resultTypes": ["violations"]} | ({"runOnly": rules} if rules else {})
    found = tab.evaluate("options => axe.run(document, options)", options)["violations"]
    return [
        (f"{each['id']}: {each['help']}", " ".join(map(str, node["target"])), node["html"])
        for each in found
        for node in each["nodes"]
    ]
