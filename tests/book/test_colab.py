"""The dry run of Colab: a notebook's environment sees what is there, and what it adds stays with it. A second."""

import importlib
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "book" / "_tools"


@pytest.fixture
def colab(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("colab")


@pytest.fixture
def there(colab, tmp_path):
    """A venv's packages: a torch of one file."""
    colab.run("python3", "-m", "venv", "--without-pip", tmp_path / "venv").check_returncode()
    there = colab.packages(tmp_path / "venv")
    (there / "torch").mkdir()
    (there / "torch" / "__init__.py").write_text("name = 'there'")
    (there / "torch-2.0.dist-info").mkdir()
    (there / "torch-2.0.dist-info" / "RECORD").write_text("torch/__init__.py,sha256=0,14\n")
    return there


def test_a_fresh_environment_sees_what_is_there_and_keeps_to_itself_what_it_adds(colab, there, tmp_path):
    one, other = (colab.fresh(there, tmp_path / name) for name in ("one", "other"))
    (colab.packages(one) / "added.py").write_text("")
    script = "import torch, importlib.util; print(torch.name, importlib.util.find_spec('added') is not None)"
    said = [subprocess.check_output([venv / "bin" / "python", "-c", script], text=True) for venv in (one, other)]
    assert said == ["there True\n", "there False\n"]


@pytest.mark.parametrize("comes", ["torch-3.0.dist-info", "nvidia_cublas-13.dist-info"])
def test_a_torch_that_comes_beside_the_one_there_is_noticed(colab, there, tmp_path, comes):
    added = colab.packages(colab.fresh(there, tmp_path / "one"))
    before = colab.fingerprint(there, added)
    assert colab.fingerprint(there, added) == before
    (added / comes).mkdir()
    assert colab.fingerprint(there, added) != before


def test_a_torch_that_is_written_again_is_noticed(colab, there, tmp_path):
    before = colab.fingerprint(there, tmp_path)
    (there / "torch-2.0.dist-info" / "RECORD").write_text("torch/__init__.py,sha256=1,14\n")
    assert colab.fingerprint(there, tmp_path) != before
