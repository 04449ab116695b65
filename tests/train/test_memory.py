"""Memory that a run takes: a large tensor shows in it."""

import mmap

import torch

from miniserve.train.memory import memory_bytes


def test_a_tensor_shows():
    # On pages of its own: what the allocator kept from an earlier tensor would be taken already.
    pages = mmap.mmap(-1, 2**26)
    before = memory_bytes(torch.device("cpu"))
    kept = torch.frombuffer(pages, dtype=torch.uint8).fill_(1)
    assert memory_bytes(torch.device("cpu")) - before > 0.9 * kept.nbytes
