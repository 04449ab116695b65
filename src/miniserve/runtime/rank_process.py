"""The process of a rank other than 0: it loads its slice of the model and computes what rank 0 computes, until told.

It knows nothing of requests: each step comes as a `Batch` through a pipe, and ranks that run the same batches in the
same order meet at the same sums. Its tokens are nobody's business, so it stops before the logits.

It is started by `ranks` and says over the pipe (`member`) that it is up, how much memory is free if asked, and that its
KV cache is made.
"""

from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch

from miniserve.model.expert_plan import ExpertOptions
from miniserve.runtime.batch import Batch
from miniserve.runtime.kv_cache import KVCache
from miniserve.runtime.member import run
from miniserve.runtime.paged_attention import PagedAttention
from miniserve.runtime.part import Part
from miniserve.runtime.process_group import connect
from miniserve.runtime.trial import free_beside_steps


class Job(NamedTuple):
    """What a rank has to do.

    Attributes:
        rank, size: which of how many.
        part: how it loads its slice.
        experts: as `load_model` takes them.
        meeting_file: see `process_group`.
    """

    rank: int
    size: int
    part: Part
    experts: ExpertOptions | None
    meeting_file: Path


class StepLimits(NamedTuple):
    """Asks how much memory is free beside a step of these, which all ranks then try: see `trial.free_beside_steps`."""

    block_size: int
    max_num_batched_tokens: int
    max_num_seqs: int


class CacheShape(NamedTuple):
    """The KV cache that all ranks are to have."""

    num_blocks: int
    block_size: int
    dtype: torch.dtype


@torch.inference_mode()
def serve(pipe: Connection) -> None:
    """Do a job that comes through `pipe`, up to the None that ends it."""
    job: Job = pipe.recv()
    device = job.part.settle()
    pipe.send(None)
    communicator = connect(job.rank, job.size, job.meeting_file, device)
    decoder = job.part.load(communicator, experts=job.experts)
    while isinstance(asked := pipe.recv(), StepLimits):
        pipe.send(free_beside_steps(decoder, *asked))
    if asked is None:
        return
    num_blocks, block_size, dtype = asked
    cache = KVCache(decoder.config, num_blocks, block_size, dtype=dtype, device=decoder.device)
    pipe.send(None)
    while (arrays := pipe.recv()) is not None:
        batch = Batch(*(torch.from_numpy(array).to(decoder.device) for array in arrays))
        decoder(batch.token_ids, batch.positions, PagedAttention(decoder.ops, cache, batch))


def main() -> None:
    """The program."""
    run(serve)
