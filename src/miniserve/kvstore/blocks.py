"""`BlockCopier`: KV blocks from the device into host memory and back, each as the one piece that `KVLayout` describes.

On a GPU the copies run on a stream of their own, beside the steps: the blocks are put together on the device, so that
one copy crosses the bus for several, from or to pinned memory. `mark` is what keeps the order: taken in the engine's
thread, it stands for all that was launched until then, and a copy that is given it waits for that on the device. What a
step writes is thus there before it is read, and a block that a step still reads is not written over. On a CPU a step is
done when its launch returns; a mark is nothing.

`gather` and `scatter` return when the bytes are there, and may be called from one other thread than the engine's. Who
holds the blocks meanwhile is the caller's business (core/connector.py).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from miniserve.kvstore.layout import KVLayout
from miniserve.runtime.kv_cache import KVCache

STAGED_BLOCKS = 16  # that are copied at a time: enough to fill the bus, and little of a GPU's memory

Mark = torch.cuda.Event | None


class BlockCopier:
    """Copies between `cache` and host buffers of `layout`'s form.

    Args:
        cache: the KV memory.
        layout: its form.
    """

    def __init__(self, cache: KVCache, layout: KVLayout) -> None:
        self.layout = layout
        self._device = cache.keys[0].device
        tensors = [tensor for pair in cache.layers for tensor in pair]
        tensors += [tensor for pair in cache.scales for tensor in pair]
        self._parts = [_bytes(tensor) for tensor in tensors]  # each [num_blocks, bytes]
        ends = np.cumsum([part.shape[1] for part in self._parts])
        assert ends[-1] == layout.block_bytes, "the layout is the cache's"
        self._spans = [slice(end - part.shape[1], end) for part, end in zip(self._parts, ends, strict=True)]
        if self._device.type == "cuda":
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            self._staged = torch.empty((STAGED_BLOCKS, layout.block_bytes), dtype=torch.uint8, device=self._device)
        else:
            self._views = [part.numpy() for part in self._parts]

    def buffers(self, count: int) -> Tensor:
        """Host memory for so many blocks: [count, block_bytes] uint8, pinned if the device is a GPU."""
        pinned = self._device.type == "cuda"
        return torch.empty((count, self.layout.block_bytes), dtype=torch.uint8, pin_memory=pinned)

    def mark(self) -> Mark:
        """All that the calling thread has launched on the device so far."""
        if self._device.type != "cuda":
            return None
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def gather(self, blocks: Sequence[int], into: Tensor, after: Mark) -> None:
        """Copy blocks of the cache into `into` [len(blocks), block_bytes], once what `after` stands for is done."""
        assert into.shape == (len(blocks), self.layout.block_bytes)
        if self._device.type != "cuda":
            index, host = np.asarray(blocks), into.numpy()
            for view, span in zip(self._views, self._spans, strict=True):
                host[:, span] = view[index]
            return
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            self._wait_for(after)
            for at in range(0, len(blocks), STAGED_BLOCKS):
                rows = self._rows(blocks[at : at + STAGED_BLOCKS])
                staged = self._staged[: len(rows)]
                for part, span in zip(self._parts, self._spans, strict=True):
                    staged[:, span] = part[rows]
                into[at : at + len(rows)].copy_(staged, non_blocking=True)
            self._finish()

    def scatter(self, source: Tensor, blocks: Sequence[int], after: Mark) -> None:
        """Copy `source` [len(blocks), block_bytes] into blocks of the cache, once what `after` stands for is done.

        Steps that are launched when it has returned find the blocks there.
        """
        assert source.shape == (len(blocks), self.layout.block_bytes)
        if self._device.type != "cuda":
            index, host = np.asarray(blocks), source.numpy()
            for view, span in zip(self._views, self._spans, strict=True):
                view[index] = host[:, span]
            return
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            self._wait_for(after)
            for at in range(0, len(blocks), STAGED_BLOCKS):
                rows = self._rows(blocks[at : at + STAGED_BLOCKS])
                staged = self._staged[: len(rows)]
                staged.copy_(source[at : at + len(rows)], non_blocking=True)
                for part, span in zip(self._parts, self._spans, strict=True):
                    part[rows] = staged[:, span]
            self._finish()

    def _rows(self, blocks: Sequence[int]) -> Tensor:
        return torch.tensor(blocks, dtype=torch.int64, device=self._device)

    def _wait_for(self, mark: Mark) -> None:
        if mark is not None:
            self._stream.wait_event(mark)

    def _finish(self) -> None:
        """Wait for the copies, asleep: the engine's thread wants the processor."""
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        event.synchronize()


def _bytes(tensor: Tensor) -> Tensor:
    """[num_blocks, bytes of a block] uint8, the same memory."""
    return tensor.flatten(1).view(torch.uint8)
