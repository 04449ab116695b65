"""`Ranks`: what rank 0 has of the others of a model that is shared out: it starts them, and hands out batches.

Rank 0 is the process that the engine runs in; with it are scheduler, tokenizer and sampler. The others are processes
that only run the decoder (`rank_process`), each with its slice of it.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from miniserve.errors import InvalidRequestError, RankError
from miniserve.model.choices import choose_device
from miniserve.model.decoder import Decoder
from miniserve.model.expert_plan import ExpertOptions, plan_experts
from miniserve.model.load import open_checkpoint
from miniserve.model.sharding import sharded_config
from miniserve.model.sources.resolve import resolve
from miniserve.runtime.batch import Batch
from miniserve.runtime.crew import START_S, Crew, CrewOwner
from miniserve.runtime.part import Part
from miniserve.runtime.process_group import Group, connect
from miniserve.runtime.rank_process import CacheShape, Job, StepLimits
from miniserve.runtime.trial import free_beside_steps

LOAD_S = 1800.0  # to have its slice loaded: rank 0 loads one as large meanwhile, so most of this has passed by then
MODULE = "miniserve.runtime.rank_process"


class Ranks(CrewOwner):
    """The ranks 1 to size - 1, connected. Their slices load while the caller loads that of rank 0.

    Until it is closed, torch's CPU threads in this process are shared out among all ranks, this one too.

    Args:
        model, dtype, backend, quantization, experts: as `load_model` takes them.
        size: how many ranks, this one too; at least 2.
        device: "cpu", or the first of as many GPUs.

    Attributes:
        communicator: rank 0's, for `load_model`.
        device: rank 0's.

    Raises:
        InvalidRequestError: the model cannot be shared out among so many, or there are not so many GPUs.
        RankError: one did not start.
    """

    def __init__(
        self,
        model: str,
        size: int,
        *,
        device: str,
        dtype: str,
        backend: str,
        quantization: str,
        experts: ExpertOptions | None = None,
    ) -> None:
        files = resolve(model)
        config = open_checkpoint(files).config
        if experts:
            plan_experts(config, size, experts)
        sharded_config(config, size, whole_experts=experts is not None)
        devices = devices_from(device, size)
        self.device = devices[0]
        self._crew = Crew(size)
        file = self._crew.folder / "ranks"
        try:
            for rank in range(1, size):
                part = Part(str(files.path), devices[rank], dtype, backend, quantization, self._crew.threads)
                self._crew.start(rank, MODULE, Job(rank, size, part, experts, file))
            self._crew.receive(START_S)
            try:
                self.communicator: Group = connect(0, size, file, torch.device(self.device))
            except RuntimeError as error:
                self._crew.heard()  # it knows more of what went wrong
                raise RankError(f"the {size} ranks could not be connected: {error}") from error
        except BaseException:
            self._crew.kill()
            raise

    def free_beside_steps(
        self, decoder: Decoder, block_size: int, max_num_batched_tokens: int, max_num_seqs: int
    ) -> int:
        """`trial.free_beside_steps` of all ranks at once: what each of them could allocate. `decoder` is this rank's.

        Raises:
            RankError: one failed to load its slice, or has no memory for such a step.
        """
        limits = StepLimits(block_size, max_num_batched_tokens, max_num_seqs)
        self._crew.tell(limits)
        free: list[int] = [free_beside_steps(decoder, *limits), *self._crew.receive(LOAD_S)]
        return min(free) // len(free) if self.device == "cpu" else min(free)  # one memory, or one for each

    def make_caches(self, num_blocks: int, block_size: int, dtype: torch.dtype) -> None:
        """Let the others make KV caches like this rank's. They are ready for batches then.

        Raises:
            RankError: one failed to load its slice, or to make its cache.
        """
        self._crew.tell(CacheShape(num_blocks, block_size, dtype))
        self._crew.receive(LOAD_S)
        self._crew.watch(self.communicator.abort)

    @contextmanager
    def computing(self, batch: Batch) -> Iterator[None]:
        """Let the others compute a batch, which the caller computes within the block.

        Raises:
            RankError: one is gone, before or in the middle of it.
        """
        with self._crew.computing(as_arrays(batch)):
            yield


def as_arrays(batch: Batch) -> tuple[Any, ...]:
    """A batch as it goes through a pipe."""
    tensors = (getattr(batch, field.name) for field in dataclasses.fields(batch))
    return tuple(tensor.cpu().numpy() for tensor in tensors)


def devices_from(first: str, size: int) -> list[str]:
    """A device for each of so many processes: the CPU, or GPUs from that one on.

    Raises:
        InvalidRequestError: there are not so many.
    """
    device = choose_device(first)
    if device.type == "cpu":
        return ["cpu"] * size
    start, count = device.index or 0, torch.cuda.device_count()
    if start + size > count:
        raise InvalidRequestError(
            f"a model in {size} processes: this machine has {count} GPUs, {count - start} from cuda:{start} on"
        )
    return [f"cuda:{index}" for index in range(start, start + size)]
