"""`ApartRanks`: what rank 0, the first of attention, has of the others: it starts them, and tells them each step.

It is to an engine in two parts what `runtime.ranks` is to one that is sliced.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from miniserve.errors import RankError
from miniserve.fleet.afd.apart import Apart
from miniserve.fleet.afd.attention import AttentionSide
from miniserve.fleet.afd.member import Job, Loaded, Told, attention_side, meet
from miniserve.fleet.afd.spans import Spans
from miniserve.fleet.afd.split import split
from miniserve.model.decoder import Decoder
from miniserve.model.load import open_checkpoint
from miniserve.model.sources.resolve import resolve
from miniserve.runtime.batch import Batch
from miniserve.runtime.crew import START_S, Crew, CrewOwner
from miniserve.runtime.kv_cache import KVCache, free_memory
from miniserve.runtime.part import Part
from miniserve.runtime.rank_process import CacheShape
from miniserve.runtime.ranks import LOAD_S, as_arrays, devices_from

MODULE = "miniserve.fleet.afd.member"


class ApartRanks(CrewOwner):
    """All ranks but the first, connected. Their parts load while the caller loads that of rank 0.

    Until it is closed, torch's CPU threads in this process are shared out among all ranks, this one too.

    Args:
        model, dtype, backend, quantization: as `load_model` takes them.
        apart: the sides.
        device: "cpu", or the first of as many GPUs.
        trace: a folder in which each rank records what it does when; None: none.

    Attributes:
        communicator: rank 0's among attention's ranks, for `load_model`.
        device: rank 0's.

    Raises:
        InvalidRequestError: the model cannot be shared out so, or there are not so many GPUs.
        RankError: one did not start.
    """

    def __init__(
        self,
        model: str,
        apart: Apart,
        *,
        device: str,
        dtype: str,
        backend: str,
        quantization: str,
        trace: Path | None = None,
    ) -> None:
        files = resolve(model)
        apart.check(open_checkpoint(files).config)
        devices = devices_from(device, apart.size)
        self.apart, self.device = apart, devices[0]
        self._crew = crew = Crew(apart.size)
        self._spans = Spans(0, trace)
        jobs = [
            Job(rank, apart, Part(str(files.path), on, dtype, backend, quantization, crew.threads), crew.folder, trace)
            for rank, on in enumerate(devices)
        ]
        try:
            for job in jobs[1:]:
                crew.start(job.rank, MODULE, job)
            crew.receive(START_S)
            try:
                self._group, self.communicator = meet(jobs[0])
            except RuntimeError as error:
                crew.heard()  # it knows more of what went wrong
                raise RankError(f"the {apart.size} ranks could not be connected: {error}") from error
        except BaseException:
            crew.kill()
            raise

    def free(self, decoder: Decoder, *_: int) -> int:
        """Bytes that each rank of attention could allocate, `decoder` being rank 0's; they are alike.

        No step is tried for it: on a GPU that takes the other side, and what a step needs is a part of what
        `memory_fraction` leaves.

        Raises:
            RankError: one failed to load its part.
        """
        self._crew.tell(Loaded())
        self._crew.receive(LOAD_S)
        free = free_memory(decoder.device)
        return free // self.apart.attention if self.device == "cpu" else free  # one memory, or one for each

    def make_caches(self, decoder: Decoder, cache: KVCache, shape: CacheShape) -> AttentionSide:
        """Let the others make KV caches like this rank's, and be ready for steps; what this rank computes them with.

        Raises:
            RankError: one failed to make its cache.
        """
        self._crew.tell(shape)
        self._crew.receive(LOAD_S)
        self._crew.watch(self._group.abort)
        return attention_side(decoder, cache, self.apart, self._group, self._spans)

    @contextmanager
    def computing(self, batch: Batch) -> Iterator[None]:
        """Let the others compute a batch, which the caller computes within the block.

        Raises:
            RankError: one is gone, before or in the middle of it.
        """
        rows = [len(part.token_ids) for part in split(batch, self.apart.batches)]
        with self._crew.computing(Told(rows, as_arrays(batch) if self.apart.attention > 1 else ())):
            yield
        self._spans.flush()
