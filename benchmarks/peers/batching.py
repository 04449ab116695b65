"""Continuous batching over llama.cpp's C API: the loop of its server, without HTTP, JSON or a sampler's copies.

Each step decodes one token of every running sequence, then as much of the waiting prompts as the batch holds; a
sequence that ends gives its slot to the next prompt. The next token is the argmax of the logits where the library left
them. Needs numpy only.
"""

import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from protocol import Job, Outputs

Ints = np.ndarray


class Context(Protocol):
    """A context of llama.cpp, or of a fork of it.

    Attributes:
        num_slots: sequences that it can hold at once.
        num_batch: most tokens of one call.
    """

    num_slots: int
    num_batch: int

    def clear(self) -> None:
        """Forget all sequences."""

    def remove(self, slot: int) -> None:
        """Forget one sequence."""

    def decode(self, tokens: Ints, positions: Ints, slots: Ints, wanted: Ints) -> None:
        """Compute a batch; `wanted` says of which tokens the logits are needed. All int32, but `wanted` int8."""

    def logits(self, row: int) -> np.ndarray:
        """The logits that followed the `row`-th token of the last batch: float32 [vocab_size]."""


class _Sequence:
    """A job in a slot: what is computed of its prompt, and what it has said."""

    def __init__(self, job: Job, output: list[int]) -> None:
        self.prompt = np.asarray(job.prompt_token_ids, dtype=np.int32)
        self.max_tokens = job.max_tokens
        self.num_computed = 0
        self.output = output


def run_jobs(context: Context, jobs: Sequence[Job]) -> Outputs:
    """Continue all the jobs, exactly as many tokens as each says."""
    started = time.perf_counter()
    ttft_s = None
    context.clear()
    outputs: list[list[int]] = [[] for _ in jobs]
    waiting = deque(_Sequence(job, output) for job, output in zip(jobs, outputs, strict=True))
    running: dict[int, _Sequence] = {}
    free = list(range(context.num_slots))[::-1]
    while waiting or running:
        while waiting and free:
            running[free.pop()] = waiting.popleft()
        spoke = _step(context, running)
        if ttft_s is None and spoke:
            ttft_s = time.perf_counter() - started
        for slot in [slot for slot in spoke if len(running[slot].output) == running[slot].max_tokens]:
            context.remove(slot)
            del running[slot]
            free.append(slot)
    return Outputs(outputs, ttft_s)


def _step(context: Context, running: dict[int, _Sequence]) -> list[int]:
    """Compute one batch; returns the slots that got a token."""
    parts: list[tuple[int, np.ndarray, int]] = []  # slot, tokens, position of the first
    room = context.num_batch
    for slot, sequence in running.items():
        if sequence.output:
            parts.append((slot, np.asarray(sequence.output[-1:], dtype=np.int32), sequence.num_computed))
            room -= 1
    for slot, sequence in running.items():
        if room and not sequence.output:
            piece = sequence.prompt[sequence.num_computed : sequence.num_computed + room]
            parts.append((slot, piece, sequence.num_computed))
            room -= len(piece)
    lengths = [len(piece) for _, piece, _ in parts]
    last = np.cumsum(lengths) - 1
    wanted = np.zeros(sum(lengths), dtype=np.int8)
    speaks = []
    for (slot, piece, _), row in zip(parts, last, strict=True):
        sequence = running[slot]
        sequence.num_computed += len(piece)
        if sequence.num_computed >= len(sequence.prompt):
            wanted[row] = 1
            speaks.append((slot, int(row)))
    context.decode(
        np.concatenate([piece for _, piece, _ in parts]),
        np.concatenate([np.arange(at, at + len(piece), dtype=np.int32) for _, piece, at in parts]),
        np.repeat(np.asarray([slot for slot, _, _ in parts], dtype=np.int32), lengths),
        wanted,
    )
    for slot, row in speaks:
        running[slot].output.append(int(context.logits(row).argmax()))
    return [slot for slot, _ in speaks]
