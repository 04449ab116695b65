"""A run's state on disk: whole or not there, another model's refused, and a model that transformers can load."""

import itertools

import pytest
import torch
import transformers as hf

from miniserve.errors import CorruptFileError
from miniserve.train import snapshot
from support.tiny_training import DENSE, SPARSE, settings, trainer


def saved(folder, run):
    return snapshot.save(
        folder, run.step, run.decoder, run.optimizer, settings={"a": 1}, history=[{"step": 1.0}], scaler={"scale": 2.0}
    )


def test_the_newest_counts_and_older_ones_go(tmp_path):
    assert snapshot.newest(tmp_path) is None
    run = trainer(settings(steps=3))
    saved(tmp_path, run)
    for _ in run.run():
        saved(tmp_path, run)
    found = snapshot.newest(tmp_path)
    assert (found.step, found.settings, found.history, found.scaler) == (3, {"a": 1}, [{"step": 1.0}], {"scale": 2.0})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000003"]


def test_what_was_not_finished_is_not_there(tmp_path, monkeypatch):
    run = trainer(settings(steps=3))
    saved(tmp_path, run)
    next(run.run())
    monkeypatch.setattr(snapshot, "save_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, run)
    assert snapshot.newest(tmp_path).step == 0
    monkeypatch.undo()
    saved(tmp_path, run)
    assert snapshot.newest(tmp_path).step == 1
    assert not list(tmp_path.glob(".*"))


def test_a_model_of_another_shape_or_half_a_file_is_refused(tmp_path):
    run = trainer(settings(steps=2))
    list(itertools.islice(run.run(), 1))
    folder = saved(tmp_path, run)
    other = trainer(settings(SPARSE, steps=2))
    with pytest.raises(CorruptFileError, match="another model's"):
        snapshot.restore(snapshot.newest(tmp_path), other.decoder, other.optimizer)
    moments = folder / "optimizer.safetensors"
    moments.write_bytes(moments.read_bytes()[:-10])
    with pytest.raises(CorruptFileError, match=r"optimizer\.safetensors"):
        snapshot.restore(snapshot.newest(tmp_path), run.decoder, run.optimizer)
    (folder / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CorruptFileError, match=r"run\.json is not a training run's state"):
        snapshot.newest(tmp_path)


@pytest.mark.parametrize("model", [DENSE, SPARSE])
def test_transformers_loads_it(model, tmp_path):
    run = trainer(settings(model, steps=2))
    list(run.run())
    theirs = hf.AutoModelForCausalLM.from_pretrained(saved(tmp_path, run), dtype=torch.float32).eval()
    ids, targets = run.corpus.batch(9, 9, 2)
    with torch.inference_mode():
        expected = torch.nn.functional.cross_entropy(theirs(ids).logits.flatten(0, 1), targets.flatten())
        found = run._losses(ids, targets).cross_entropy
    assert float(found) == pytest.approx(float(expected), abs=1e-4)
