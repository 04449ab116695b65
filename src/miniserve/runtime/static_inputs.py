"""`StaticInputs`: a decode step's inputs at addresses that never change, as a CUDA graph needs them.

The tensors of all batch sizes are views of one region of device memory, whose first rows a smaller batch uses. On the
host lies a twin of it in pinned memory; `fill` writes a step there and starts one copy, which the device makes before
whatever is launched next. A step may be filled in as soon as the one before has been waited for, not earlier: until
then the device may still be reading the twin.
"""

from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from miniserve.core.executor import Scheduled, Step
from miniserve.runtime.batch import Batch


class StaticInputs:
    """Room for decode steps of up to `max_batch` requests with up to `max_blocks` KV blocks each.

    Args:
        max_batch: most requests of a step.
        max_blocks: width of the block table.
        block_size: tokens a KV block holds.
        device: where the tensors live.
    """

    def __init__(self, max_batch: int, max_blocks: int, block_size: int, device: torch.device) -> None:
        self.max_batch, self.max_blocks, self.block_size = max_batch, max_blocks, block_size
        long, short = 8 * max_batch, 4 * max_batch  # bytes of a column of int64 and of int32
        ends = list(accumulate((long, long, long, short, short * max_blocks)))
        self._device = torch.zeros(ends[-1], dtype=torch.uint8, device=device)
        self._host = torch.zeros(ends[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._query_start = torch.arange(max_batch + 1, dtype=torch.int32, device=device)
        self._rows = torch.arange(max_batch, device=device)
        starts = [0, *ends[:-1]]
        self._spans = list(zip(starts, ends, (torch.int64,) * 3 + (torch.int32,) * 2, strict=True))
        self._columns = [self._host[start:end].view(kind).numpy() for start, end, kind in self._spans]

    def batch(self, size: int) -> Batch:
        """The first `size` rows as a batch: views, the same at each call."""
        columns = [self._device[start:end].view(kind) for start, end, kind in self._spans]
        tokens, positions, slots, lengths = (column[:size] for column in columns[:4])
        table: Tensor = columns[4].view(self.max_batch, self.max_blocks)[:size]
        return Batch(tokens, positions, self._query_start[: size + 1], lengths, table, slots, self._rows[:size])

    def takes(self, step: Step) -> bool:
        """Whether there is room for the step, and it computes the last token of each of its requests and no more.

        The last token of a prompt may be one of them, but not where log-probabilities of the prompt are wanted.
        """
        return len(step.scheduled) <= self.max_batch and all(map(self._fits, step.scheduled))

    def _fits(self, part: Scheduled) -> bool:
        request = part.request
        in_prompt = part.start < request.num_prompt_tokens and request.params.prompt_logprobs is not None
        return part.num_tokens == 1 and part.samples and len(request.block_table) <= self.max_blocks and not in_prompt

    def fill(self, step: Step, size: int) -> None:
        """Write a step that `takes` allows, and padding up to `size` rows: no KV, no context, no experts."""
        parts = step.scheduled
        tokens, positions, slots, lengths, table = self._columns
        table = table.reshape(self.max_batch, self.max_blocks)
        count = len(parts)
        at = np.fromiter((part.start for part in parts), np.int64, count)
        tokens[:count] = [part.request.token_ids[part.start] for part in parts]
        positions[:count] = at
        lengths[:count] = at + 1
        for row, part in enumerate(parts):
            blocks = part.request.block_table
            table[row, : len(blocks)] = np.frombuffer(blocks, np.int32)
        slots[:count] = (
            table[np.arange(count), at // self.block_size] * np.int64(self.block_size) + at % self.block_size
        )
        tokens[count:size] = lengths[count:size] = 0
        positions[count:size] = slots[count:size] = -1
        self._device.copy_(self._host, non_blocking=True)
