"""`Spans`: who did what from when to when, for those who want to see a step's turns. Recorded only if asked for."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

What = Literal["attention", "feed-forward", "wait"]


class Span(NamedTuple):
    """Of one rank: what it did for which batch in which layer; seconds of a clock that all ranks share."""

    rank: int
    step: int
    what: What
    layer: int
    batch: int
    begin_s: float
    end_s: float


class Spans:
    """One rank's, written to a file of its own after each step. What a GPU does behind the host's back is not seen.

    Args:
        rank: whose.
        folder: where the file goes, `rank-N.jsonl`; None: nothing is recorded.
    """

    def __init__(self, rank: int, folder: Path | None) -> None:
        self._rank, self._folder, self._step = rank, folder, 0
        self._found: list[Span] = []

    @contextmanager
    def of(self, what: What, layer: int, batch: int) -> Iterator[None]:
        """The block is one."""
        if self._folder is None:
            yield
            return
        begin_s = time.perf_counter()
        yield
        self._found.append(Span(self._rank, self._step, what, layer, batch, begin_s, time.perf_counter()))

    def flush(self) -> None:
        """A step has ended."""
        if self._folder is None:
            return
        with (self._folder / f"rank-{self._rank}.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(span) + "\n" for span in self._found)
        self._found.clear()
        self._step += 1


def read_spans(folder: Path) -> list[Span]:
    """Those that all ranks have written to a folder, rank by rank."""
    return [
        Span(*json.loads(line))
        for path in sorted(folder.glob("rank-*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
