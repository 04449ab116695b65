"""A run learns, repeats itself, goes on where it stopped, and is the same run in two processes."""

import itertools
import multiprocessing
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from miniserve.errors import InvalidRequestError
from miniserve.train import snapshot
from support.tiny_training import DENSE, SPARSE, settings, trainer


def weights(run):
    return {name: each.detach().clone() for name, each in run.decoder.named_parameters()}


def alike(one, other, tolerance=0.0):
    return all(torch.allclose(each, other[name], atol=tolerance, rtol=0) for name, each in one.items())


@pytest.mark.parametrize("model", [DENSE, SPARSE])
def test_it_learns(model):
    run = trainer(settings(model))
    before = run.evaluate()
    reports = list(run.run())
    assert [report.step for report in reports] == list(range(1, 31))
    assert run.evaluate() < before - 1
    assert reports[-1].cross_entropy < reports[0].cross_entropy - 1
    if model is SPARSE:
        assert all(0.9 < report.balance < 4 and report.z > 0 for report in reports)


def test_the_same_settings_give_the_same_weights_and_another_seed_others():
    one, two, other = (trainer(settings(SPARSE, steps=4, seed=seed)) for seed in (1, 1, 2))
    for run in (one, two, other):
        list(run.run())
    assert alike(weights(one), weights(two))
    assert not alike(weights(one), weights(other), 1e-3)


def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    whole = trainer(settings(SPARSE, steps=8))
    list(whole.run())
    first = trainer(settings(SPARSE, steps=8))
    list(itertools.islice(first.run(), 5))
    snapshot.save(tmp_path, first.step, first.decoder, first.optimizer, settings={}, history=[], scaler={})
    second = trainer(settings(SPARSE, steps=8, seed=5))
    found = snapshot.newest(tmp_path)
    snapshot.restore(found, second.decoder, second.optimizer)
    second.step = found.step
    assert [report.step for report in second.run()] == [6, 7, 8]
    assert alike(weights(whole), weights(second))


def test_it_stops_between_two_steps():
    run = trainer(settings(steps=9))
    assert [report.step for report in run.run(stop=lambda: run.step == 2)] == [1, 2]


def test_pieces_of_a_batch_add_up_to_it():
    whole, pieces = trainer(settings(steps=3)), trainer(settings(steps=3, micro_batch=2))
    for run in (whole, pieces):
        list(run.run())
    assert alike(weights(whole), weights(pieces), 2e-5)


def test_layers_that_are_computed_again_change_nothing():
    plain, again = trainer(settings(SPARSE, steps=3)), trainer(settings(SPARSE, steps=3, recompute=True))
    for run in (plain, again):
        list(run.run())
    assert alike(weights(plain), weights(again))


def _rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    run = trainer(settings(steps=3, micro_batch=4))
    reports = list(run.run())
    torch.save((weights(run), [report.cross_entropy for report in reports]), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_make_the_steps_that_one_makes(tmp_path):
    alone = trainer(settings(steps=3, micro_batch=4))
    expected = [report.cross_entropy for report in alone.run()]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_rank, args=(rank, port, str(tmp_path))) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    for rank in range(2):
        found, entropies = torch.load(tmp_path / f"{rank}.pt")
        assert alike(weights(alone), found, 2e-5)
        assert entropies == pytest.approx(expected, rel=1e-5)


def test_what_cannot_be_shared_out_is_refused(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    with pytest.raises(InvalidRequestError, match="8 sequences at a time cannot be shared out among 3"):
        trainer(settings())
