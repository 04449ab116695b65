"""The model inside the package: it is what its card says, says what transformers says, and needs no network."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from miniserve.core.sampling_params import SamplingParams
from miniserve.kernels import reference
from miniserve.llm import LLM
from miniserve.model.cache import NoCache
from miniserve.model.generate import generate_cached
from miniserve.model.load import load_model
from miniserve.model.sources.embedded import load_embedded
from miniserve.model.sources.resolve import cached, resolve
from miniserve.model.sources.verify import verify
from miniserve.tables import from_table
from miniserve.train.forward import forward
from miniserve.train.settings import TrainSettings

NAME, ROOT = "tiny-moe", Path(__file__).parents[2]
LOSS, LEAST, MOST = 4.3, 0.04, 0.25  # measured on the passage: 4.16, and 5.9% to 20.6% of a layer's choices
# From the end of "The Winter's Tale", which was held out.
HELD_OUT = """PAULINA.
                             That she is living,
Were it but told you, should be hooted at
Like an old tale; but it appears she lives,
Though yet she speak not. Mark a little while.--
Please you to interpose, fair madam: kneel,
And pray your mother's blessing.--Turn, good lady;
Our Perdita is found.

[Presenting PERDITA, who kneels to HERMIONE.]

HERMIONE.
                      You gods, look down,
And from your sacred vials pour your graces
Upon my daughter's head!--Tell me, mine own,
Where hast thou been preserv'd? where liv'd? how found
Thy father's court?
"""


@pytest.fixture(scope="module")
def model():
    return load_model(NAME, dtype="float32", device="cpu", backend="torch")


@pytest.fixture(scope="module")
def passage(model):
    return torch.tensor(model.tokenizer.encode(HELD_OUT))


def test_it_is_here_by_name_and_whole(monkeypatch, tmp_path):
    monkeypatch.setenv("MINISERVE_CACHE", str(tmp_path))
    embedded = load_embedded()[NAME]
    files = resolve(NAME, offline=True)
    assert files == cached(NAME)
    assert (files.kind, files.path, files.name) == ("directory", embedded.path, NAME)
    checks = {each.path.name: each for each in verify(files, progress=False)}
    assert checks["model.safetensors"].expected_sha256 == embedded.sha256
    assert sum(each.size_bytes for each in checks.values()) < 10e6
    assert not list(tmp_path.iterdir())


def test_a_wheel_has_all_of_it():
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    package = ROOT / "src" / "miniserve"
    packed = {
        path for pattern in table["tool"]["setuptools"]["package-data"]["miniserve"] for path in package.glob(pattern)
    }
    here = set(load_embedded()[NAME].path.iterdir())
    assert here <= packed
    names = {"README.md", "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"}
    assert names <= {path.name for path in here}


def test_logits_are_transformers(model, passage):
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(model.files.path, dtype=torch.float32).eval()
    assert type(theirs).__name__ == "Qwen3MoeForCausalLM"
    with torch.inference_mode():
        hidden = model.decoder(passage, torch.arange(len(passage)), NoCache(model.config))
        assert torch.allclose(model.decoder.logits(hidden), theirs(passage[None]).logits[0], atol=1e-4)


def test_it_is_what_the_training_file_and_the_card_say(model):
    config = model.config
    table = tomllib.loads((ROOT / "benchmarks/train/tiny_moe.toml").read_text(encoding="utf-8"))
    given = from_table(TrainSettings, table)
    assert dataclasses.replace(config, dtype=None) == given.model.config(config.vocab_size)
    assert config.vocab_size == given.model.vocabulary
    card = (model.files.path / "README.md").read_text(encoding="utf-8")
    assert f"{config.num_parameters():,} weights" in card
    assert f"{config.num_active_parameters():,} for a token" in card
    recorded = json.loads((ROOT / "results/training.json").read_text(encoding="utf-8"))["data"]["models"]["runs"]
    run = recorded["tiny_moe"]
    assert (run["parameters"], run["active_parameters"]) == (config.num_parameters(), config.num_active_parameters())
    assert f"{run['whole_held_out']['loss']:.3f}" in card
    assert f"{recorded['tiny_dense']['whole_held_out']['loss']:.3f}" in card
    assert f"{given.steps:,} steps" in card


def test_what_it_learned_holds_on_text_it_has_not_seen(model, passage):
    with torch.inference_mode():
        found = forward(model.decoder, passage[None, :-1])
    assert float(F.cross_entropy(found.logits, passage[1:])) < LOSS
    moe = model.config.moe
    shares = []
    for scores in found.router_logits:
        chosen = reference.route(scores, moe.experts_per_token, moe.normalize_weights)[1]
        shares.append(torch.bincount(chosen.flatten(), minlength=moe.num_experts) / chosen.numel())
    shares = torch.stack(shares)
    assert float(shares.min()) > LEAST
    assert float(shares.max()) < MOST


def test_it_says_the_same_each_time_without_a_network(model, tmp_path):
    environment = os.environ | {"MINISERVE_OFFLINE": "1", "MINISERVE_CACHE": str(tmp_path), "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "miniserve", "generate", "ROMEO.\n", "--model", NAME, "--max-tokens", "12"]
    how = ["--json", "--backend", "torch", "--dtype", "float32"]
    done = subprocess.run(
        [*command, *how], capture_output=True, text=True, env=environment, timeout=120, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    ids = list(generate_cached(model.decoder, model.tokenizer.encode("ROMEO.\n"), 12))
    assert json.loads(done.stdout)["outputs"][0]["token_ids"] == ids
    assert re.search(r"[a-z]{2}", model.tokenizer.decode(ids))


def test_a_chat_is_a_dialogue_in_a_play(model):
    with LLM(model, max_model_len=128) as llm:
        (reply,) = llm.chat([{"role": "user", "content": "Who goes there?"}], SamplingParams(max_tokens=8))
    assert len(reply.token_ids) == 8
    prompt = model.tokenizer.encode_chat([{"role": "user", "content": "Who goes there?"}])
    assert model.tokenizer.decode(prompt) == "FIRST GENTLEMAN.\nWho goes there?\n\nSECOND GENTLEMAN.\n"
