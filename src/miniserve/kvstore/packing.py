"""Blocks in fewer bytes: what a tier stores of what the device holds.

`Plain` stores them as they are. `FP8` stores 8-bit codes (E4M3), with a scale for each head of each token, in the form
of an 8-bit KV cache's blocks: half of 16 bits, a quarter of 32, and a little for the scales. That is lossy. So what is
stored has a layout of its own, which says so, and from which the identity of blocks is made: what was rounded in a tier
is never found by an engine that asks for what was not, nor the other way round.
"""

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from miniserve.errors import InvalidRequestError
from miniserve.kernels.reference import store_kv
from miniserve.kvstore.layout import KVLayout

PACKINGS = ("none", "fp8")


class Packing(Protocol):
    """Between the device's blocks and a tier's.

    Attributes:
        stored: the layout of what is stored.
    """

    stored: KVLayout

    def pack(self, blocks: Tensor) -> Tensor:
        """[n, block_bytes] uint8 as [n, stored.block_bytes] uint8; it may be the same memory."""
        ...

    def unpack(self, stored: Tensor) -> Tensor:
        """[n, stored.block_bytes] uint8 as [n, block_bytes] uint8; it may be the same memory."""
        ...


class Plain:
    """As it is."""

    def __init__(self, layout: KVLayout) -> None:
        self.stored = layout

    def pack(self, blocks: Tensor) -> Tensor:
        """Of `Packing`."""
        return blocks

    def unpack(self, stored: Tensor) -> Tensor:
        """Of `Packing`."""
        return stored


class FP8:
    """In 8 bits.

    Raises:
        InvalidRequestError: they have 8 bits already.
    """

    def __init__(self, layout: KVLayout) -> None:
        if layout.has_scales:
            raise InvalidRequestError(f"kv_compress is fp8: keys and values are {layout.dtype} already")
        self._layout = layout
        self.stored = replace(layout, dtype="fp8", computed=f"{layout.computed}, {layout.dtype} rounded in a tier")

    def pack(self, blocks: Tensor) -> Tensor:
        """Of `Packing`. A token's codes and scale are those that an FP8 cache would have of the same numbers."""
        layout, stored = self._layout, self.stored
        heads, size = layout.num_kv_heads, layout.block_size
        numbers = blocks.contiguous().view(layout.torch_dtype).view(-1, heads, layout.head_dim)
        half = len(numbers) // 2  # it does not matter what of it are keys
        codes = torch.empty((2, half // size, size, heads, layout.head_dim), dtype=stored.torch_dtype)
        scales = torch.empty((2, half // size, heads, size))
        store_kv(numbers[:half], numbers[half:], codes[0], codes[1], torch.arange(half), scales[0], scales[1])
        flat = codes.view(torch.uint8).view(len(blocks), -1), scales.view(torch.uint8).view(len(blocks), -1)
        return torch.cat(flat, 1)

    def unpack(self, stored: Tensor) -> Tensor:
        """Of `Packing`."""
        layout, packed = self._layout, self.stored
        codes = stored[:, : packed.codes_bytes].contiguous().view(packed.torch_dtype)
        scales = stored[:, packed.codes_bytes :].contiguous().view(torch.float32)
        shape = (-1, layout.block_size, layout.num_kv_heads, layout.head_dim)
        numbers = codes.view(shape).float() * scales.view(-1, shape[2], shape[1]).transpose(1, 2)[..., None]
        return numbers.to(layout.torch_dtype).view(len(stored), -1).view(torch.uint8)


def choose_packing(name: str, layout: KVLayout) -> Packing:
    """The packing called `name`. Raises InvalidRequestError: no such one, or not of this layout."""
    if name not in PACKINGS:
        raise InvalidRequestError(f"kv_compress {name!r} is not one of {', '.join(PACKINGS)}")
    return FP8(layout) if name == "fp8" else Plain(layout)
