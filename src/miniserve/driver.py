"""`Driver`: steps an engine from the caller's thread, until what the caller waits for is there.

Several may wait at once, such as two streams read in turn. Whoever steps computes for all, and the text of each stream
is put aside for it. Whatever ends a wait (the end, an error, Ctrl-C, a loop that is left), nothing of what was waited
for stays behind in the engine. Prompts are made into generations elsewhere; nothing runs between calls.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from miniserve.errors import InvalidRequestError
from miniserve.outputs import RequestOutput, snapshot
from miniserve.runtime.generation import Delta, Generation
from miniserve.runtime.interrupts import delayed_interrupt
from miniserve.runtime.text_engine import TextEngine


class Driver:
    """Drives `text_engine`, alone, until it is closed. Then it lets go of it, whoever still holds the driver."""

    def __init__(self, text_engine: TextEngine) -> None:
        self._text: TextEngine | None = text_engine
        self._generations: dict[str, Generation] = {}
        self._streams: dict[str, deque[str]] = {}

    @property
    def text_engine(self) -> TextEngine:
        """What is driven. Raises InvalidRequestError once closed."""
        if self._text is None:
            raise InvalidRequestError("this LLM is closed")
        return self._text

    @property
    def live(self) -> set[str]:
        """Ids of the generations that are not done."""
        return set(self._generations)

    def close(self) -> None:
        """End all generations and let go of the engine."""
        self.text_engine.abort_all()
        self._generations.clear()
        self._text = None

    def add(self, generation: Generation) -> None:
        """Queue a generation. Raises InvalidRequestError: see `TextEngine.add`."""
        self._generations[generation.request_id] = self.text_engine.add(generation)

    def abort(self, request_id: str) -> bool:
        """End a generation now; False if there is none by that name."""
        generation = self._generations.pop(request_id, None)
        return generation is not None and self.text_engine.abort(request_id)

    def step(self) -> list[Delta]:
        """Compute one step, wholly even if Ctrl-C comes in the middle of it."""
        with delayed_interrupt():
            deltas = self.text_engine.step()
        for delta in deltas:
            name = delta.generation.request_id
            if delta.text and name in self._streams:
                self._streams[name].append(delta.text)
            if delta.generation.finished:
                self._generations.pop(name, None)
        return deltas

    def run(self, generations: Sequence[Generation], progress: bool) -> list[RequestOutput]:
        """Compute until all these are done; `progress` shows a bar on stderr."""
        mine = {generation.request_id for generation in generations}
        try:
            for generation in generations:
                self.add(generation)
            for _ in _with_bar(self._finished_of(mine), len(generations), progress):
                pass
        finally:
            for request_id in mine:
                self.abort(request_id)
        return [snapshot(generation) for generation in generations]

    def stream(self, generation: Generation) -> Iterator[str]:
        """Its text as it comes. It is queued when the first piece is asked for."""
        # Whoever drives the engine, this stream or another one, its text is put here.
        pieces = self._streams[generation.request_id] = deque()
        try:
            self.add(generation)
            while not generation.finished:
                self.step()
                while pieces:
                    yield pieces.popleft()
            yield from pieces
        finally:
            del self._streams[generation.request_id]
            self.abort(generation.request_id)

    def _finished_of(self, mine: set[str]) -> Iterator[Generation]:
        remaining = set(mine)
        while remaining:
            for delta in self.step():
                if delta.generation.finished and delta.generation.request_id in remaining:
                    remaining.discard(delta.generation.request_id)
                    yield delta.generation


class TextIterator:
    """Text as it comes. Leaving the loop early, by `break`, Ctrl-C or `close()`, aborts the request.

    Attributes:
        output: everything so far; `finish_reason` is "abort" after leaving early.

    Example:
        >>> from miniserve import LLM, SamplingParams
        >>> with LLM("tiny-moe", dtype="float32") as llm:
        ...     pieces = llm.stream("ROMEO.", SamplingParams(max_tokens=100))
        ...     for piece in pieces:
        ...         if len(pieces.output.token_ids) == 6:
        ...             break
        >>> pieces.output.text.strip(), pieces.output.finish_reason
        ('I will not think you', 'abort')
    """

    def __init__(self, driver: Driver, generation: Generation) -> None:
        self._generation = generation
        self._pieces = driver.stream(generation)

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def close(self) -> None:
        """Abort, if it has not ended."""
        self._pieces.close()  # type: ignore[attr-defined]

    @property
    def output(self) -> RequestOutput:
        """The output so far."""
        return snapshot(self._generation)


def _with_bar(done: Iterable[Generation], total: int, show: bool) -> Iterator[Generation]:
    """Pass on what is done, counting it on a bar with the tokens a second so far."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[rate]}"), console=Console(stderr=True), disable=not show) as bar:
        task, tokens = bar.add_task("generating", total=total, rate=""), 0
        for generation in done:
            tokens += sum(choice.request.num_output_tokens for choice in generation.choices)
            elapsed = bar.tasks[task].elapsed or 0.0
            bar.update(task, advance=1, rate=f"{tokens / elapsed:,.0f} tokens/s" if elapsed else "")
            yield generation
