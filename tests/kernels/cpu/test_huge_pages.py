"""An arena gives back what was put in, side by side, for as long as anybody holds it."""

import gc

import pytest
import torch

from miniserve.kernels.cpu.huge_pages import LINE, PAGE, Arena, rounded_up


def test_copies_are_equal_aligned_and_outlive_the_arena():
    tensors = [
        torch.randn(7, 3),
        torch.randn(5).bfloat16(),
        torch.arange(200, dtype=torch.uint8).view(2, 100)[:, ::2],
        torch.zeros(0),
        torch.randn(3, 4, 5).half(),
    ]
    arena = Arena(sum(map(rounded_up, tensors)))
    copies = [arena.copy(tensor) for tensor in tensors]
    del arena
    gc.collect()
    for tensor, copied in zip(tensors, copies, strict=True):
        assert torch.equal(tensor, copied)
        assert copied.is_contiguous()
        assert copied.data_ptr() % LINE == 0 or not copied.numel()
    assert copies[0].data_ptr() % PAGE == 0
    copies[0].zero_()
    assert torch.equal(copies[1], tensors[1])


def test_a_full_arena_says_so():
    arena = Arena(100)
    arena.copy(torch.zeros(20))
    with pytest.raises(MemoryError, match="an arena of 100 bytes has no room for 80 more at 128"):
        arena.copy(torch.zeros(20))
