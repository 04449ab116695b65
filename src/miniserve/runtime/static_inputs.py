"""`StaticInputs`: a decode step's inputs at addresses that never change, as a CUDA graph needs them.

The tensors of all batch sizes are views of one region of device memory, whose first rows a smaller batch uses. On the
host lie two twins of it in pinned memory, used in turn: `fill` writes a step into one and starts one copy, which the
device makes before whatever is launched next. So a step can be filled in while the device still reads the one before;
an event for each twin says when it has been read, and `fill` waits for it.
"""

from collections import deque
from itertools import accumulate
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from miniserve.core.executor import Scheduled, Step
from miniserve.runtime.batch import Batch
from miniserve.runtime.newest import Newest


class Event(Protocol):
    """A place in the device's order of work, as a `torch.cuda.Event` is; never recorded, it has passed."""

    def record(self) -> None:
        """It is now, behind all that was launched."""
        ...

    def synchronize(self) -> None:
        """Wait for it."""
        ...


class _Passed:
    """A CPU does everything at once."""

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


def _event(on_gpu: bool) -> Event:
    return torch.cuda.Event() if on_gpu else _Passed()  # type: ignore[no-untyped-call]


class _Twin(NamedTuple):
    host: Tensor
    columns: "list[np.ndarray]"
    was_read: Event


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
        on_gpu = device.type == "cuda"
        hosts = [torch.zeros(ends[-1], dtype=torch.uint8, pin_memory=on_gpu) for _ in range(2)]
        self._query_start = torch.arange(max_batch + 1, dtype=torch.int32, device=device)
        self._rows = torch.arange(max_batch, device=device)
        starts = [0, *ends[:-1]]
        self._spans = list(zip(starts, ends, (torch.int64,) * 3 + (torch.int32,) * 2, strict=True))
        self._twins = deque(
            _Twin(host, [host[start:end].view(kind).numpy() for start, end, kind in self._spans], _event(on_gpu))
            for host in hosts
        )

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

    def fill(self, step: Step, size: int, newest: Newest | None = None) -> None:
        """Write a step that `takes` allows, and padding up to `size` rows: no KV, no context, no experts.

        Pending tokens are written as `newest` says.
        """
        parts = step.scheduled
        self._twins.rotate()
        host, (tokens, positions, slots, lengths, table), was_read = self._twins[0]
        was_read.synchronize()
        table = table.reshape(self.max_batch, self.max_blocks)
        count = len(parts)
        at = np.fromiter((part.start for part in parts), np.int64, count)
        tokens[:count] = [
            newest.stand_in(part.request) if newest and part.is_pending else part.request.token_ids[part.start]
            for part in parts
        ]
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
        self._device.copy_(host, non_blocking=True)
        was_read.record()
