"""`miniserve train`: a model that can be served, a run that goes on after Ctrl-C, and settings that are not mixed."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

from miniserve import LLM, SamplingParams
from miniserve.cli import app
from miniserve.errors import CorruptFileError, InvalidRequestError

CONFIG = """
text = "text.txt"
steps = 6
batch = 4
length = 16
warmup = 1
learning_rate = 0.01
evaluate_every = 3
save_every = 4
[model]
vocabulary = 280
hidden = 16
layers = 2
heads = 2
kv_heads = 1
head_dim = 8
intermediate = 32
experts = 4
expert_intermediate = 16
positions = 64
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "text.txt").write_text("to be, or not to be: that is the question.\n" * 200, encoding="utf-8")
    path = tmp_path / "config.toml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


def run(*options):
    result = CliRunner().invoke(app, ["train", *map(str, options), "--device", "cpu"])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_model_that_it_leaves_can_be_served(config, tmp_path):
    out = tmp_path / "run"
    found = run(config, "--out", out)
    assert "the model is there" in found.stdout
    assert re.search(r"median step: MFU \d+%, of a large product here; [\d,]+ MiB at most", found.stderr)
    history = json.loads((out / "history.json").read_text(encoding="utf-8"))
    assert [entry["step"] for entry in history] == [1, 2, 3, 4, 5, 6]
    assert [bool(entry.get("held_out")) for entry in history] == [False, False, True, False, False, True]
    with LLM(str(out)) as llm:
        (answer,) = llm.generate(["to be"], SamplingParams(max_tokens=5, temperature=0, ignore_eos=True))
    assert len(answer.outputs[0].token_ids) == 5
    assert run(config, "--out", out).stdout == found.stdout  # nothing is left to be done


def test_other_settings_in_the_same_folder_are_refused(config, tmp_path):
    run(config, "--out", tmp_path / "run", "--steps", "2")
    with pytest.raises(InvalidRequestError, match=r"has a run with other settings \(precision\)"):
        run(config, "--out", tmp_path / "run", "--steps", "2", "--precision", "bf16")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("steps = 6", "stepps = 6"), "unknown key 'stepps'; did you mean 'steps'"),
        (("batch = 4", "batch = 4\nmicro_batch = 3"), r"batch \(4\) is not a multiple of micro_batch \(3\)"),
        (("warmup = 1", "warmup = 6"), "6 steps of warm-up of 6"),
        (("text.txt", "none.txt"), r"none\.txt cannot be read as a text"),
        (("length = 16", "length = 100"), "length .100. is beyond the model's positions .64."),
        (("steps = 6", "steps = six"), "cannot be read as TOML"),
    ],
)
def test_nonsense_is_explained(change, says, config, tmp_path):
    config.write_text(CONFIG.replace(*change), encoding="utf-8")
    with pytest.raises((InvalidRequestError, CorruptFileError), match=says):
        run(config, "--out", tmp_path / "run")


def test_ctrl_c_saves_and_the_same_command_goes_on(config, tmp_path):
    config.write_text(CONFIG.replace("steps = 6", "steps = 100000"), encoding="utf-8")
    command = [sys.executable, "-m", "miniserve", "train", str(config), "--out", str(tmp_path / "run")]
    with subprocess.Popen([*command, "--device", "cpu"], stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "run").glob("step-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "stopped behind step" in said
    state = json.loads(next((tmp_path / "run").glob("step-*/run.json")).read_text(encoding="utf-8"))
    assert str(state["step"]) in said
    assert len(state["history"]) == state["step"]
    assert torch.isfinite(torch.tensor(state["history"][-1]["cross_entropy"]))
