"""The process of a rank other than 0, of either side: it loads its part, and computes what rank 0 computes, until told.

It is started by `ranks` and says over the pipe (`runtime.member`) that it is up, that its part is loaded if asked, and
that its KV cache is made if it has one. Then each step comes as `Told`.
"""

from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from miniserve.fleet.afd.apart import WHOLE, Apart
from miniserve.fleet.afd.attention import AttentionSide
from miniserve.fleet.afd.exchange import Exchange
from miniserve.fleet.afd.feed_forward import FeedForward
from miniserve.fleet.afd.spans import Spans
from miniserve.model.communicator import ALONE, Communicator, Slice
from miniserve.model.decoder import Decoder
from miniserve.model.expert_plan import plan_experts
from miniserve.runtime.batch import Batch
from miniserve.runtime.kv_cache import KVCache
from miniserve.runtime.member import run
from miniserve.runtime.part import Part
from miniserve.runtime.process_group import Group, connect


class Job(NamedTuple):
    """What a rank has to do.

    Attributes:
        rank: which; attention's come first.
        apart: the sides.
        part: how it loads its side.
        folder: where the ranks find one another.
        trace: where spans go, if anywhere.
    """

    rank: int
    apart: Apart
    part: Part
    folder: Path
    trace: Path | None


class Loaded:
    """Asks for an answer when the rank's part is loaded."""


class Told(NamedTuple):
    """A step: rows of each of its batches; for attention's ranks, the whole of it as arrays."""

    rows: list[int]
    arrays: tuple[Any, ...]


def meet(job: Job) -> tuple[Group, Communicator]:
    """Among all ranks; and this side's: of attention's ranks, among them."""
    device = torch.device(job.part.device)
    group = connect(job.rank, job.apart.size, job.folder / "all", device)
    if job.rank >= job.apart.attention:
        return group, Slice(job.rank - job.apart.attention, job.apart.feed_forward)
    if job.apart.attention == 1:
        return group, ALONE
    return group, connect(job.rank, job.apart.attention, job.folder / "attention", device)


def attention_side(decoder: Decoder, cache: KVCache, apart: Apart, group: Group, spans: Spans) -> AttentionSide:
    """What such a rank computes steps with. `decoder` is its side's, and its communicator this side's."""
    # The slice's config has as many experts as the whole's, and plans of them do not look at anything else.
    experts = plan_experts(decoder.config, apart.feed_forward, WHOLE) if decoder.config.moe else None
    exchange = Exchange(apart, decoder.communicator, group, experts, decoder.device)
    return AttentionSide(decoder, cache, exchange, apart.batches, spans)


@torch.inference_mode()
def serve(pipe: Connection) -> None:
    """Do a job that comes through `pipe`, up to the None that ends it."""
    job: Job = pipe.recv()
    job.part.settle()
    pipe.send(None)
    group, communicator = meet(job)
    is_attention, apart = job.rank < job.apart.attention, job.apart
    decoder = job.part.load(communicator, side="attention" if is_attention else "feed-forward")
    spans = Spans(job.rank, job.trace)
    while isinstance(asked := pipe.recv(), Loaded):
        pipe.send(None)
    if asked is None:
        return
    if is_attention:
        cache = KVCache(decoder.config, asked.num_blocks, asked.block_size, dtype=asked.dtype, device=decoder.device)
        step = attention_side(decoder, cache, apart, group, spans)
    else:
        feed_forward = FeedForward(decoder, apart, group, spans)
    pipe.send(None)
    while (told := pipe.recv()) is not None:
        if is_attention:
            step(Batch(*(torch.from_numpy(array).to(decoder.device) for array in told.arrays)))
        else:
            feed_forward.step(told.rows)
        spans.flush()


def main() -> None:
    """The program."""
    run(serve)
