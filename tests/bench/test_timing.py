"""A timer is only as good as what it times: known durations, in turn, and no more passes than the budget allows."""

import time

import pytest
import torch

from miniserve.bench.record import device_slug, record, write_record
from miniserve.bench.timing import seconds_per_call
from miniserve.notebook import load_results

CPU = torch.device("cpu")


def test_a_call_takes_what_it_takes():
    sleeps = [lambda: time.sleep(0.004), lambda: time.sleep(0.006)]
    assert 0.005 <= seconds_per_call(sleeps, CPU, repeats=5) < 0.02


def test_works_are_called_in_turn_and_within_the_budget():
    called = []
    seconds_per_call([lambda: called.append(0), lambda: called.append(1)], CPU, repeats=4)
    assert called == [0, 1] * 5  # one pass warms up
    called.clear()
    seconds_per_call([lambda: called.append(0)], CPU, repeats=50, budget_s=0.0)
    assert len(called) == 1 + 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("graph", [True, False])
def test_on_a_gpu_twice_the_bytes_take_twice_as_long(graph):
    device = torch.device("cuda")
    small, large = (torch.ones(size, device=device) for size in (2**27, 2**28))
    seconds = [seconds_per_call([lambda x=x: x.add_(1)], device, graph=graph) for x in (small, large)]
    assert seconds[1] / seconds[0] == pytest.approx(2, rel=0.15)


def test_a_record_is_one_that_the_book_reads(tmp_path):
    write_record(tmp_path / "a" / "speed.json", {"copy": 3}, "python speed.py")
    read = load_results("a/speed", tmp_path)
    assert (read["copy"], read.command, read.label) == (3, "python speed.py", "recorded")
    assert read.device == record({}, "x")["device"]
    assert not list(tmp_path.rglob("*.partial"))
    assert device_slug().strip("abcdefghijklmnopqrstuvwxyz0123456789-") == ""
