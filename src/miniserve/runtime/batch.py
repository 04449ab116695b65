"""`Batch`: a step as flat tensors, all that the decoder and the attention kernels need to know of it.

The T new tokens of B requests lie one after the other, whatever part of their sequences they are: a prefill chunk
brings many, a decode one. Nothing here knows the difference. A batch is passed along explicitly and read only.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from miniserve.core.executor import Step
from miniserve.kernels.cpu.dense import Paged
from miniserve.runtime.newest import Newest
from miniserve.runtime.upload import upload


@dataclass(frozen=True)
class Batch:
    """A step's T tokens of B requests.

    Attributes:
        token_ids: [T] int64.
        positions: [T] int64, of each token in its sequence; -1 for padding.
        query_start: [B + 1] int32; request b's tokens are rows query_start[b] to query_start[b + 1].
        context_lens: [B] int32, each sequence's length after the step.
        block_table: [B, W] int32, the KV blocks of each sequence in order; entries behind its last block are 0.
        slot_mapping: [T] int64, where each token's KV goes: block · block_size + offset; -1 for padding.
        last_rows: [B] int64, the row of each request's last token.
    """

    token_ids: Tensor
    positions: Tensor
    query_start: Tensor
    context_lens: Tensor
    block_table: Tensor
    slot_mapping: Tensor
    last_rows: Tensor

    @property
    def paged(self) -> Paged:
        """Where the tokens lie, as a call for all layers takes it."""
        return Paged(self.slot_mapping, self.query_start, self.context_lens, self.block_table)

    @classmethod
    def from_step(cls, step: Step, block_size: int, device: torch.device, newest: Newest | None = None) -> "Batch":
        """Lay a step out.

        Args:
            step: at least one request.
            block_size: slots of a KV block.
            device: where the tensors go.
            newest: where pending tokens are; needed if there are any.
        """
        parts = step.scheduled
        counts = np.fromiter((part.num_tokens for part in parts), np.int64, len(parts))
        starts = np.fromiter((part.start for part in parts), np.int64, len(parts))
        query_start = np.zeros(len(parts) + 1, np.int32)
        np.cumsum(counts, out=query_start[1:])
        token_ids: list[int] = []
        for part in parts:
            if newest and part.is_pending:
                token_ids.append(newest.stand_in(part.request))
            elif part.num_tokens == 1:
                token_ids.append(part.request.token_ids[part.start])
            else:
                token_ids += part.token_ids
        block_table = np.zeros((len(parts), max(len(part.request.block_table) for part in parts)), np.int32)
        for row, part in enumerate(parts):
            blocks = part.request.block_table
            block_table[row, : len(blocks)] = np.frombuffer(blocks, np.int32)
        # A token's row, minus its sequence's first row, plus its sequence's first position, is its position.
        owner = np.repeat(np.arange(len(parts)), counts)
        positions = np.arange(len(token_ids)) + (starts - query_start[:-1])[owner]
        slots = block_table[owner, positions // block_size] * np.int64(block_size) + positions % block_size
        batch = cls(
            *(
                upload(array, device)
                for array in (
                    np.array(token_ids, np.int64),
                    positions,
                    query_start,
                    (starts + counts).astype(np.int32),
                    block_table,
                    slots,
                    query_start[1:].astype(np.int64) - 1,
                )
            )
        )
        return replace(batch, token_ids=newest.fill_in(batch.token_ids)) if newest else batch
