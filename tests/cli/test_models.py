"""`miniserve models`, as a person and as a script sees it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from miniserve.cli.models import app
from miniserve.errors import ChecksumError, ModelNotFoundError
from miniserve.model.sources.aliases import load_aliases

TIMEOUT_S = 60


@pytest.fixture(autouse=True)
def empty_caches(tmp_path, monkeypatch):
    """No model, and no Hub snapshot, is on this disk."""
    monkeypatch.setenv("MINISERVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MINISERVE_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    save_file({"w": np.zeros(4, np.float32)}, path / "model.safetensors")
    return path


def put_in_hub_cache(tmp_path, name: str):
    """A snapshot as the Hub's client lays it out."""
    folder = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("1" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("1" * 40)
    (snapshot / "config.json").write_text("{}")
    save_file({"w": np.zeros(4, np.float32)}, snapshot / "model.safetensors")
    return snapshot


def invoke(*arguments: str) -> str:
    """Standard output; an error of ours escapes as it is, since `main` is what prints it."""
    result = CliRunner().invoke(app, arguments)
    if result.exception:
        raise result.exception
    return result.stdout


def test_list_tells_what_is_cached(tmp_path):
    alias = load_aliases()["smollm2"]
    header, inside, row = (line.split("\t") for line in invoke("list").splitlines())
    assert header == ["name", "cached", "size", "licence", "title"]
    assert inside[:2] == ["tiny-moe", "yes"]
    assert row[:4] == ["smollm2", "no", "98.4 MB", "Apache-2.0"]
    alias.path.parent.mkdir(parents=True)
    with alias.path.open("wb") as file:
        file.truncate(alias.size_bytes)  # a hole of the right size: `list` looks no closer
    put_in_hub_cache(tmp_path, "org/some-model")
    rows = {row["name"]: row for row in json.loads(invoke("list", "--json"))}
    assert rows["smollm2"]["cached"] is True
    assert rows["org/some-model"]["size_bytes"] > 0
    with pytest.raises(ChecksumError, match=alias.sha256):
        invoke("verify", "smollm2")


def test_pull_prints_where_the_model_lies(directory):
    assert invoke("pull", str(directory)) == f"{directory}\n"
    assert json.loads(invoke("pull", str(directory), "--json"))["path"] == str(directory)


def test_pull_offline_says_what_is_missing():
    with pytest.raises(ModelNotFoundError, match="miniserve models pull smollm2"):
        invoke("pull", "smollm2")


def test_verify_lists_files_and_hashes(directory):
    lines = [line.split("\t") for line in invoke("verify", str(directory)).splitlines()]
    assert [line[0] for line in lines] == ["file", "config.json", "model.safetensors"]
    assert all(len(line[3]) == 64 for line in lines[1:])
    report = json.loads(invoke("verify", str(directory), "--json"))
    assert [f["sha256"] for f in report["files"]] == [line[3] for line in lines[1:]]


@pytest.mark.parametrize("command", ["verify", "info"])
@pytest.mark.parametrize("name", ["smollm2", "org/model"])
def test_what_is_not_here_is_not_fetched_in_passing(command, name):
    with pytest.raises(ModelNotFoundError, match=f"`miniserve models pull {name}`"):
        invoke(command, name)


@pytest.mark.parametrize("command", ["verify", "info", "pull"])
def test_an_unknown_name_suggests_a_near_one(command):
    with pytest.raises(ModelNotFoundError, match=r"Did you mean smollm2\?"):
        invoke(command, "smolm2")


def test_info_describes_a_model(tiny_directory):
    directory, reference = tiny_directory("llama")
    facts = json.loads(invoke("info", str(directory), "--json"))
    assert facts["layers"] == reference.config.num_hidden_layers
    assert facts["kv_heads"] == reference.config.num_key_value_heads
    assert facts["parameters"] == sum(p.numel() for p in reference.parameters())
    assert facts["size_bytes"] == (directory / "model.safetensors").stat().st_size
    plain = dict(line.split("\t") for line in invoke("info", str(directory)).splitlines())
    assert plain["context length"] == f"{reference.config.max_position_embeddings:,}"
    assert plain["chat template"] in {"yes", "no"}


@pytest.mark.parametrize("arguments", [["list"], ["verify", "MODEL"], ["pull", "MODEL"], ["--help"]])
def test_no_torch_where_none_is_needed(arguments, directory):
    code = (
        "import sys\nfrom miniserve.cli.models import app\n"
        "app(sys.argv[1:], standalone_mode=False)\nassert 'torch' not in sys.modules"
    )
    arguments = [str(directory) if a == "MODEL" else a for a in arguments]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
def test_on_a_terminal_a_table_is_drawn_and_no_hash_is_cut_short(directory):
    digest = json.loads(invoke("verify", str(directory), "--json"))["files"][1]["sha256"]
    ours, theirs = os.openpty()
    code = "import sys\nfrom miniserve.cli.models import app\napp(sys.argv[1:])"
    with subprocess.Popen(
        [sys.executable, "-c", code, "verify", str(directory)], stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 4096):
                shown += chunk
        except OSError:  # EIO: the other end was closed
            pass
        assert process.wait(TIMEOUT_S) == 0
    os.close(ours)
    table = shown.decode()
    assert "┃" in table
    hexadecimal = "".join(c for c in table if c in "0123456789abcdef")
    assert digest[:8] in hexadecimal
    assert "…" not in table
