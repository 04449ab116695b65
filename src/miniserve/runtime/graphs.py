"""`DecodeGraphs`: decode steps as CUDA graphs, launched whole instead of kernel by kernel.

A decode step is some three hundred short kernels. Launched one by one they take longer than they run; a graph starts
them all at once. A graph is bound to the addresses and sizes it was captured with, so there is one for each of a few
batch sizes, and a step is padded up to the next. Padding writes no KV, sees no context and goes to no expert.

The largest is captured first, and all share one pool of memory, since only one runs at a time: what the smaller ones
need, the largest has already reserved. Steps that are no pure decode, that compute drafts, or that are too large, run
eagerly; `takes` says which.
Everything here waits for the device before it returns, so inputs may be written again.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from miniserve.core.executor import Step
from miniserve.model.decoder import Decoder
from miniserve.runtime.kv_cache import KVCache
from miniserve.runtime.paged_attention import PagedAttention
from miniserve.runtime.sampler import likeliest
from miniserve.runtime.static_inputs import StaticInputs

WARMUPS = 2  # runs before a capture: kernels are compiled and libraries make their handles


class Decoded(NamedTuple):
    """What a decode step gives: logits [B, V] float32 and `sampler.likeliest` of them [B], on the host."""

    logits: Tensor
    likeliest: list[int]


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    logits: Tensor
    likeliest: Tensor  # [size] int64, pinned host memory that the graph's last node writes


class DecodeGraphs:
    """The graphs of one decoder on one GPU; capturing them takes a few seconds.

    Args:
        decoder: on a CUDA device, with operators that never wait for it.
        cache: its KV memory.
        max_batch: most requests of a step.
        max_blocks: most KV blocks of a request.
        block_size: tokens a KV block holds.
    """

    def __init__(self, decoder: Decoder, cache: KVCache, *, max_batch: int, max_blocks: int, block_size: int) -> None:
        self._decoder, self._cache = decoder, cache
        self._inputs = StaticInputs(max_batch, max_blocks, block_size, decoder.device)
        self.sizes = batch_sizes(max_batch)
        self._next_size = [next(size for size in self.sizes if size >= batch) for batch in range(max_batch + 1)]
        with torch.cuda.device(decoder.device):
            self._pool = torch.cuda.graph_pool_handle()
            self._graphs = {size: self._capture(size) for size in reversed(self.sizes)}

    def takes(self, step: Step) -> bool:
        """Whether the step is a decode step for which there is a graph."""
        return self._inputs.takes(step)

    def __call__(self, step: Step) -> Decoded:
        """Compute a step that `takes` allows."""
        size = self._next_size[len(step.scheduled)]
        self._inputs.fill(step, size)
        captured = self._graphs[size]
        captured.graph.replay()
        torch.cuda.current_stream(self._decoder.device).synchronize()
        count = len(step.scheduled)
        return Decoded(captured.logits[:count], captured.likeliest[:count].tolist())

    @torch.inference_mode()
    def _capture(self, size: int) -> _Captured:
        host = torch.zeros(size, dtype=torch.int64, pin_memory=True)
        graph = torch.cuda.CUDAGraph()
        capture = torch.cuda.graph(graph, pool=self._pool)
        # On the stream that torch captures on, the same for all: on each stream cuBLAS keeps 32 MiB to itself for ever.
        stream = capture.capture_stream
        assert stream is not None
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUPS):
                self._compute(size, host)
        torch.cuda.synchronize()
        with capture:
            logits = self._compute(size, host)
        return _Captured(graph, logits, host)

    def _compute(self, size: int, host: Tensor) -> Tensor:
        """What a graph holds: a step of `size` rows of the inputs, its logits, and the likeliest tokens to the host."""
        batch = self._inputs.batch(size)
        attend = PagedAttention(self._decoder.ops, self._cache, batch)
        logits: Tensor = self._decoder.logits(self._decoder(batch.token_ids, batch.positions, attend))
        host.copy_(likeliest(logits, self._decoder.ops.argmax), non_blocking=True)
        return logits


def batch_sizes(largest: int) -> list[int]:
    """The sizes there are graphs for, ascending: 1, 2, 4, then every 8th up to 64, every 16th to 256, every 32nd."""
    sizes, size = [], 1
    while size < largest:
        sizes.append(size)
        size += size if size < 8 else 8 if size < 64 else 16 if size < 256 else 32
    return [*sizes, largest]
