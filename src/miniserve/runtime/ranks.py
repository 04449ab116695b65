"""`Ranks`: what rank 0 has of the others: it starts them, hands out batches, notices when one is gone, and ends them.

Rank 0 is the process that the engine runs in; with it are scheduler, tokenizer and sampler. The others are processes
that only run the decoder (`rank_process`). They are started as programs of their own: not forked, because a fork would
copy locks that torch's threads hold, and not by `multiprocessing`, which would run the caller's script again in each.
They have sessions of their own, so that Ctrl-C in a terminal reaches rank 0 alone, which decides what it means.

A step that fails on one rank leaves the others waiting in the middle of it, so nothing can be computed with them any
more: all end, and every later step says why. A thread sleeps on the pipes and wakes when one breaks; that is the only
thing here that is not done in the caller's thread.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch

from miniserve.errors import InvalidRequestError, RankError
from miniserve.model.choices import choose_device
from miniserve.model.decoder import Decoder
from miniserve.model.expert_plan import ExpertOptions, plan_experts
from miniserve.model.load import open_checkpoint
from miniserve.model.sharding import sharded_config
from miniserve.model.sources.resolve import resolve
from miniserve.runtime.batch import Batch
from miniserve.runtime.process_group import Group, connect
from miniserve.runtime.rank_process import CacheShape, Failed, Job, StepLimits
from miniserve.runtime.trial import free_beside_steps

START_S = 120.0  # for a process to have torch imported
LOAD_S = 1800.0  # to have its slice loaded: rank 0 loads one as large meanwhile, so most of this has passed by then
CAUSE_S = 2.0  # after a rank has lost another, for what is known of that one
NOTICE_S = 5.0  # after a failure, for what is known of a rank that is gone
END_S = 5.0  # to end when told, before it is killed
PROGRAM = "from miniserve.runtime.rank_process import main; main()"


class _LostAnotherError(RankError):
    """A rank that failed because another was gone."""


class _Other(NamedTuple):
    """A rank other than 0."""

    rank: int
    process: subprocess.Popen[bytes]
    pipe: Connection


class Ranks:
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
        devices = _devices(device, size)
        self.device = devices[0]
        self._lost: list[str] = []  # why no step can be computed any more, once that is so
        self._others: list[_Other] = []
        self._watchers: list[threading.Thread] = []
        all_threads = torch.get_num_threads()
        folder = tempfile.TemporaryDirectory(prefix="miniserve-")
        # Also when this object is forgotten, and when the interpreter ends.
        self._end = weakref.finalize(self, _end, self._others, self._watchers, folder, all_threads)
        threads = max(1, all_threads // size)
        torch.set_num_threads(threads)
        file = Path(folder.name) / "ranks"
        try:
            for rank in range(1, size):
                how = devices[rank], dtype, backend, quantization, experts
                self._others.append(_start(Job(rank, size, str(files.path), *how, threads, file)))
            for other in self._others:
                _receive(other, START_S)
            self.communicator: Group = self._connect(size, file)
        except BaseException:
            self._kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def free_beside_steps(
        self, decoder: Decoder, block_size: int, max_num_batched_tokens: int, max_num_seqs: int
    ) -> int:
        """`trial.free_beside_steps` of all ranks at once: what each of them could allocate. `decoder` is this rank's.

        Raises:
            RankError: one failed to load its slice, or has no memory for such a step.
        """
        limits = StepLimits(block_size, max_num_batched_tokens, max_num_seqs)
        for other in self._others:
            _tell(other, limits)
        free = [free_beside_steps(decoder, *limits)]
        free += (_receive(other, LOAD_S) for other in self._others)
        return min(free) // len(free) if self.device == "cpu" else min(free)  # one memory, or one for each

    def make_caches(self, num_blocks: int, block_size: int, dtype: torch.dtype) -> None:
        """Let the others make KV caches like this rank's. They are ready for batches then.

        Raises:
            RankError: one failed to load its slice, or to make its cache.
        """
        for other in self._others:
            _tell(other, CacheShape(num_blocks, block_size, dtype))
        for other in self._others:
            _receive(other, LOAD_S)
        watcher = threading.Thread(target=_watch, args=(self._others, self._lost, self.communicator), daemon=True)
        self._watchers.append(watcher)
        watcher.start()

    @contextmanager
    def computing(self, batch: Batch) -> Iterator[None]:
        """Let the others compute a batch, which the caller computes within the block.

        Raises:
            RankError: one is gone, before or in the middle of it.
        """
        self.check()
        tensors = (getattr(batch, field.name) for field in dataclasses.fields(batch))
        arrays = tuple(tensor.cpu().numpy() for tensor in tensors)
        try:
            for other in self._others:
                other.pipe.send(arrays)
            yield
        except BaseException as error:
            for watcher in self._watchers:
                watcher.join(NOTICE_S)
            gone = bool(self._lost)
            self._lost.append(f"rank 0 failed in a step: {error!r}")
            self._kill()
            if gone:
                raise self._error() from error
            raise

    def check(self) -> None:
        """See that nobody is gone.

        Raises:
            RankError: one is, or a step has failed before.
        """
        if self._lost:
            raise self._error()

    def close(self) -> None:
        """End the others."""
        self._end()

    def _connect(self, size: int, file: Path) -> Group:
        try:
            return connect(0, size, file, torch.device(self.device))
        except RuntimeError as error:
            for other in self._others:
                if other.pipe.poll():
                    _receive(other, 0)  # it knows more of what went wrong
            raise RankError(f"the {size} ranks could not be connected: {error}") from error

    def _kill(self) -> None:
        """End the others without asking: whatever they wait for will not come."""
        for other in self._others:
            other.process.kill()
        self.close()

    def _error(self) -> RankError:
        return RankError(f"{self._lost[0]}\nNothing more can be computed with these ranks: load the model again")


def _devices(first: str, size: int) -> list[str]:
    """Each rank's device."""
    device = choose_device(first)
    if device.type == "cpu":
        return ["cpu"] * size
    start, count = device.index or 0, torch.cuda.device_count()
    if start + size > count:
        raise InvalidRequestError(
            f"tensor_parallel_size is {size}: this machine has {count} GPUs, {count - start} from cuda:{start} on"
        )
    return [f"cuda:{index}" for index in range(start, start + size)]


def _start(job: Job) -> _Other:
    ours, theirs = Pipe()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what a library prints there must not get into this process's output
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    other = _Other(job.rank, process, ours)
    _tell(other, job)
    return other


def _tell(other: _Other, what: Job | StepLimits | CacheShape | None) -> None:
    """Send; if the rank has ended already, the answer that does not come says so."""
    with suppress(OSError):
        other.pipe.send(what)


def _receive(other: _Other, timeout_s: float) -> Any:
    """The next thing that a rank says.

    Raises:
        RankError: it says that it failed, or nothing.
    """
    if not other.pipe.poll(timeout_s):
        raise RankError(f"rank {other.rank} (process {other.process.pid}) has said nothing for {timeout_s:g} s")
    try:
        said = other.pipe.recv()
    except (EOFError, OSError):
        raise RankError(f"rank {other.rank} (process {other.process.pid}) {_ending(other.process)}") from None
    if isinstance(said, Failed):
        kind = _LostAnotherError if said.lost_another else RankError
        raise kind(f"rank {other.rank} (process {other.process.pid}) failed:\n{said.traceback}")
    return said


def _ending(process: subprocess.Popen[bytes]) -> str:
    """How a process ended."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(NOTICE_S)
    code = process.returncode
    if code is None:
        return "has closed its pipe"
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"


def _watch(others: list[_Other], lost: list[str], communicator: Group) -> None:
    """Sleep until a rank says that it failed, or is gone; then end this rank's waits for it.

    Of several the one that lost no other is the cause, whichever is heard first.
    """
    lost.append(_cause(list(others)))
    communicator.abort()


def _cause(others: list[_Other]) -> str:
    followed = ""
    while others and (ready := wait([each.pipe for each in others], CAUSE_S if followed else None)):
        for other in [each for each in others if each.pipe in ready]:
            others.remove(other)
            try:
                _receive(other, 0)
            except _LostAnotherError as error:
                followed = followed or str(error)
            except RankError as error:
                return str(error)
    return followed


def _end(
    others: list[_Other],
    watchers: list[threading.Thread],
    folder: "tempfile.TemporaryDirectory[str]",
    all_threads: int,
) -> None:
    for other in others:
        _tell(other, None)
    for other in others:
        try:
            other.process.wait(END_S)
        except subprocess.TimeoutExpired:
            other.process.kill()
            other.process.wait()
    for watcher in watchers:
        watcher.join()
    for other in others:
        other.pipe.close()
    folder.cleanup()
    torch.set_num_threads(all_threads)
