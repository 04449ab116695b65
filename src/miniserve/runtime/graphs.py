"""`DecodeGraphs`: decode steps as CUDA graphs, launched whole instead of kernel by kernel.

A decode step is some three hundred short kernels. Launched one by one they take longer than they run; a graph starts
them all at once. A graph is bound to the addresses and sizes it was captured with, so there is one for each of a few
batch sizes, and a step is padded up to the next. Padding writes no KV, sees no context and goes to no expert.

The largest is captured first, and all share one pool of memory, since only one runs at a time: what the smaller ones
need, the largest has already reserved. Steps that are no pure decode, that compute drafts, or that are too large, run
eagerly; `takes` says which.
Nothing here waits for the device: what a launch returns is overwritten by the next, in the device's order.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from miniserve.core.executor import Step
from miniserve.model.decoder import Decoder
from miniserve.runtime.kv_cache import KVCache
from miniserve.runtime.newest import Newest
from miniserve.runtime.paged_attention import PagedAttention
from miniserve.runtime.sampler import likeliest
from miniserve.runtime.static_inputs import StaticInputs

WARMUPS = 2  # runs before a capture: kernels are compiled and libraries make their handles


class Decoded(NamedTuple):
    """What a decode step gives: logits [B, V] float32 and `sampler.likeliest` of them [B]."""

    logits: Tensor
    likeliest: Tensor


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    decoded: Decoded


class DecodeGraphs:
    """The graphs of one decoder on one GPU; capturing them takes a few seconds.

    Args:
        decoder: on a CUDA device, with operators that never wait for it.
        cache: its KV memory.
        max_batch: most requests of a step.
        max_blocks: most KV blocks of a request.
        block_size: tokens a KV block holds.
        newest: where pending tokens are, if steps are launched ahead.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        *,
        max_batch: int,
        max_blocks: int,
        block_size: int,
        newest: Newest | None = None,
    ) -> None:
        self._decoder, self._cache, self._newest = decoder, cache, newest
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
        """Begin to compute a step that `takes` allows."""
        size = self._next_size[len(step.scheduled)]
        self._inputs.fill(step, size, self._newest)
        captured = self._graphs[size]
        captured.graph.replay()
        count = len(step.scheduled)
        return Decoded(captured.decoded.logits[:count], captured.decoded.likeliest[:count])

    @torch.inference_mode()
    def _capture(self, size: int) -> _Captured:
        graph = torch.cuda.CUDAGraph()
        capture = torch.cuda.graph(graph, pool=self._pool)
        # On the stream that torch captures on, the same for all: on each stream cuBLAS keeps 32 MiB to itself for ever.
        stream = capture.capture_stream
        assert stream is not None
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUPS):
                self._compute(size)
        torch.cuda.synchronize()
        with capture:
            decoded = self._compute(size)
        return _Captured(graph, decoded)

    def _compute(self, size: int) -> Decoded:
        """What a graph holds: a step of `size` rows of the inputs, its logits, and the likeliest tokens."""
        batch = self._inputs.batch(size)
        token_ids = self._newest.fill_in(batch.token_ids) if self._newest else batch.token_ids
        attend = PagedAttention(self._decoder.ops, self._cache, batch)
        logits: Tensor = self._decoder.logits(self._decoder(token_ids, batch.positions, attend))
        return Decoded(logits, likeliest(logits, self._decoder.ops.argmax))


def batch_sizes(largest: int) -> list[int]:
    """The sizes there are graphs for, ascending: 1, 2, 4, then every 8th up to 64, every 16th to 256, every 32nd."""
    sizes, size = [], 1
    while size < largest:
        sizes.append(size)
        size += size if size < 8 else 8 if size < 64 else 16 if size < 256 else 32
    return [*sizes, largest]
