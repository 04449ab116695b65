"""Memory that a run takes: a large tensor shows in it."""

import torch

from miniserve.train.memory import memory_bytes


def test_a_tensor_shows():
    before = memory_bytes(torch.device("cpu"))
    kept = torch.ones(2**26, dtype=torch.uint8)
    assert memory_bytes(torch.device("cpu")) - before > 0.9 * kept.nbytes
