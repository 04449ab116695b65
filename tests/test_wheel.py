"""The package as somebody else installs it: what is in the wheel, and that the wheel alone works. Some 15 s of CPU.

It is built from a copy without what else lies about in a working tree, which can so neither get in nor stand in.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import miniserve

ROOT = Path(__file__).parents[1]
OUTSIDE = ("pyproject.toml", "README.md", "LICENSE")
MOST_BYTES = 10e6  # 7.9 MB when this was written, most of it tiny-moe's weights


def files(directory):
    """Below a directory of the tree: names as the tree has them, without what Python and editors leave behind."""
    found = (path.relative_to(ROOT) for path in (ROOT / directory).rglob("*") if path.is_file())
    return [name for name in found if not any(part == "__pycache__" or part[0] == "." for part in name.parts)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    clone, made = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("wheel")
    for name in (*OUTSIDE, *files("src/miniserve"), *files("tests/support"), *files("book/_tools")):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, clone / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--no-deps", "--no-build-isolation", "--wheel-dir", made, clone]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, env=alone())
    assert done.returncode == 0, done.stderr
    (path,) = made.iterdir()
    return path


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    directory = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)
    return directory


def alone(*paths):
    """The environment, with these to import from and nothing of this tree."""
    others = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return others | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONDONTWRITEBYTECODE": "1"}


def outside(unpacked, where, *command):
    """Run Python with the unpacked wheel, somewhere else."""
    return subprocess.run(
        [sys.executable, *command], cwd=where, env=alone(unpacked), capture_output=True, text=True, check=False
    )


def test_it_has_every_file_of_the_package_and_no_other(wheel):
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        names = {name for name in archive.namelist() if not name.endswith("/")}
    own = {name for name in names if ".dist-info/" not in name}
    assert own == {name.relative_to("src").as_posix() for name in files("src/miniserve")}
    some = ("py.typed", "hardware/catalog.toml", "notebook/explorer.js", "server/view/static/index.html")
    some += ("kernels/cpu/kernels.h", "kernels/cpu/linear.cpp", "model/tiny_moe/model.safetensors")
    assert {f"miniserve/{name}" for name in some} <= own
    assert wheel.stat().st_size < MOST_BYTES


def test_what_it_says_of_itself(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (said,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        about = message_from_bytes(archive.read(said))
        info = said.rpartition("/")[0]
        assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
        assert "miniserve = miniserve.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
    assert wheel.name == f"miniserve-{miniserve.__version__}-py3-none-any.whl"
    assert (about["Name"], about["Version"]) == ("miniserve", miniserve.__version__)
    assert (about["License-Expression"], about["Requires-Python"]) == ("Apache-2.0", ">=3.11")
    assert about["Description-Content-Type"] == "text/markdown"
    assert about.get_payload().startswith("# Tokens per Second")
    needed = [line for line in about.get_all("Requires-Dist") if "extra ==" not in line]
    assert any(line.startswith("torch") for line in needed)
    assert not any("==" in line or "<" in line for line in needed), "an environment's own versions are kept"


def test_it_works_from_elsewhere(unpacked, tmp_path):
    code = """if True:
        import miniserve, sys
        assert "torch" not in sys.modules
        print(miniserve.__file__)
        from miniserve import LLM, SamplingParams
        from miniserve.hardware.catalog import load_catalog
        load_catalog().accelerator("h100")
        with LLM("tiny-moe", backend="torch") as llm:
            (output,) = llm.generate("ROMEO.", SamplingParams(max_tokens=4))
        print(len(output.token_ids))
    """
    done = outside(unpacked, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    where, tokens = done.stdout.split()
    assert Path(where).is_relative_to(unpacked)
    assert tokens == "4"


@pytest.mark.parametrize("command", ["plan", "simulate"])
def test_its_commands_say_what_they_take(unpacked, tmp_path, command):
    done = outside(unpacked, tmp_path, "-m", "miniserve", command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"miniserve {command}" in done.stdout
    assert "--slo" in done.stdout


def test_the_simulator_computes(unpacked, tmp_path):
    asked = ["--hardware", "h100", "--concurrency", "2", "--num-requests", "2", "--output-len", "8", "--json"]
    done = outside(unpacked, tmp_path, "-m", "miniserve", "simulate", "-m", "qwen3-8b", *asked)
    assert done.returncode == 0, done.stderr
    assert '"label": "simulated"' in done.stdout
