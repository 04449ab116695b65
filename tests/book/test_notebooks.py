"""The committed notebooks: fresh, runnable from top to bottom, and agreed with `_config.yml` about where the book lives."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))


def nbval(notebook: Path, *, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Run a notebook from top to bottom; `PYTHONPATH` lets a clone that is not installed run too."""
    command = [sys.executable, "-m", "pytest", "--rootdir", notebook.parent, "-c", os.devnull, "-q"]
    command += ["-p", "no:cacheprovider", "--nbval-lax", "--nbval-current-env"]
    command += ["--nbval-sanitize-with", HERE / "sanitize.cfg", notebook]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_the_notebooks_match_their_sources():
    tool = ROOT / "book" / "_tools" / "notebooks.py"
    done = subprocess.run([sys.executable, tool, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_there_are_notebooks():
    assert NOTEBOOKS, "no notebook in book/: run `make notebooks`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_its_checked_outputs_hold(path):
    done = nbval(path)
    assert done.returncode == 0, (
        "if a checked output changed for good reason, run `make notebooks`\n" + done.stdout[-6000:]
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_badge_setup_cell_and_config_agree(path):
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    url, branch = config["repository"]["url"], config["repository"]["branch"]
    notebook = json.loads(path.read_text(encoding="utf-8"))
    badge, setup = ("".join(cell["source"]) for cell in notebook["cells"][:2])
    slug = url.removeprefix("https://github.com/")
    assert f"https://colab.research.google.com/github/{slug}/blob/{branch}/book/{path.name}" in badge
    assert f'REPOSITORY = "{url}"' in setup
    assert f'"--branch={branch}"' in setup
    assert f"{config['html']['baseurl'].rstrip('/')}/book/{path.stem}.html" in badge
    assert notebook["metadata"]["accelerator"] == "GPU"


def test_the_repository_stands_in_config_alone():
    url = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]["url"]
    sources = [
        *ROOT.glob("book/*.md"),
        *ROOT.glob("book/_*/*.py"),
        *ROOT.glob("src/**/*.py"),
        *ROOT.glob("src/**/*.js"),
    ]
    named = [str(path.relative_to(ROOT)) for path in sources if url in path.read_text(encoding="utf-8")]
    assert not named, f"the repository's address belongs in _config.yml only; take it out of {named}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_myst_is_left_in_the_text(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            outside_code = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
            assert not re.search(r"\{[\w:]+\}|^:::|^\([\w-]+\)=", outside_code, re.MULTILINE) or "$" in outside_code, (
                text
            )
