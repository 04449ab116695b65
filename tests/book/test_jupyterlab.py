"""`.live()` in JupyterLab, in a real Chromium: run a notebook, press a slider, see the kernel's exact value.

JupyterLab listens on the loopback address with a token, in a folder of its own, and is ended by its process id.
"""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest

from miniserve.cache_dir import cache_dir

ROOT = Path(__file__).resolve().parents[2]
CHAPTER = "01_why_gpus"
TOKEN = "a-token-for-this-test-only"
CELL = """\
from miniserve.notebook import Axis, Explorer
explorer = Explorer(lambda batch, speed: 1000 * batch ** 2 + speed, title="Live", label="Value", unit="tokens", tolerance=9,
                    batch=Axis(1, 9, integer=True, points=3, start=4), speed=Axis.of(1, 2, 3, start=1))
explorer.live()"""


@pytest.fixture
def lab(tmp_path):
    pytest.importorskip("jupyterlab")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL), nbformat.v4.new_code_cell("explorer")])
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(notebook, tmp_path / "live.ipynb")
    chapter = nbformat.read(ROOT / "book" / f"{CHAPTER}.ipynb", as_version=4)
    for cell in chapter.cells:
        if cell.cell_type == "code":
            cell.outputs = []  # so that whatever is seen was made by this run
    nbformat.write(chapter, tmp_path / f"{CHAPTER}.ipynb")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root"]
    command += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={tmp_path}"]
    command += ["--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    own = {
        name: str(tmp_path / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "HOME")
    }
    env = {**os.environ, **own, "PYTHONPATH": str(ROOT / "src"), "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings")}
    env["MINISERVE_CACHE"] = str(cache_dir())  # HOME is another one here
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=tmp_path)
        try:
            address = f"http://127.0.0.1:{port}/"
            _wait(address, server, tmp_path / "log")
            yield address
        finally:
            server.terminate()
            server.wait(20)


def _wait(address: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(120):
        if server.poll() is not None:
            pytest.fail("JupyterLab ended at once:\n" + log.read_text()[-2000:])
        try:
            urllib.request.urlopen(f"{address}api?token={TOKEN}", timeout=2)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.25)
    pytest.fail("JupyterLab did not answer in 30 s:\n" + log.read_text()[-2000:])


def run_all(browser, lab, name):
    """Open a notebook and run every cell. Returns the tab at once, with the kernel at work."""
    tab = browser.new_page(viewport={"width": 1200, "height": 1100})
    tab.goto(f"{lab}lab/tree/{name}.ipynb?token={TOKEN}&reset")
    tab.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=40_000)
    tab.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=40_000)  # before that, "run" runs nothing
    tab.get_by_text("Run", exact=True).first.click()
    tab.get_by_text("Run All Cells", exact=True).first.click()
    return tab


@pytest.mark.timeout(240)
def test_a_chapter_runs_top_to_bottom(lab, browser, artifacts, smollm2_gguf):
    tab = run_all(browser, lab, CHAPTER)
    tab.locator(".ms-status").wait_for(state="attached", timeout=180_000)  # the last cell's output
    assert tab.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0
    live = tab.locator(".jp-OutputArea .ms-explorer", has_text="exact, from the kernel")
    live.scroll_into_view_if_needed()
    assert "15.1" in (live.locator("output").text_content() or "")  # dollars a million tokens, one token in a pass
    live.locator("input[type=range]").first.press("End")
    tab.wait_for_function(  # beyond the ridge: 1.30 / 3600 · 2 · 70e9 / 989e12 · 1e6
        "() => [...document.querySelectorAll('.ms-explorer output')].some(o => o.textContent.includes('0.0511')"
        " && o.textContent.includes('exact'))",
        timeout=15_000,
    )
    tab.screenshot(path=artifacts / "jupyterlab-chapter.png")
    tab.close()


@pytest.mark.timeout(120)
def test_live_sliders_answer_exactly(lab, browser, artifacts):
    tab = run_all(browser, lab, "live")
    live = tab.locator(".jp-OutputArea .ms-explorer", has_text="exact, from the kernel")
    live.wait_for(timeout=40_000)
    assert re.search(r"Value: 16,001 tokens", live.locator("output").inner_text())
    slider = live.locator("input[type=range]").first
    slider.focus()
    for _ in range(3):
        slider.press("ArrowRight")
    tab.wait_for_function(
        "() => [...document.querySelectorAll('.ms-explorer output')].some(o => o.textContent.includes('49,001')"
        " && o.textContent.includes('exact'))",
        timeout=15_000,
    )
    # The same object shown plainly beside it is the static form, at work in JupyterLab too.
    static = tab.locator(".ms-explorer", has_text="interpolated")
    static.locator("input[type=range]").first.press("End")
    assert "81,001" in static.locator("output").inner_text()
    tab.screenshot(path=artifacts / "jupyterlab-live.png")
    tab.close()
