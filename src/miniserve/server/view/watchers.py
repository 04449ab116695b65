"""`Watchers`: hands what the engines' recorders say to everybody who watches.

Engines record while there is at least one. An update is encoded once, whoever reads it; a watcher holds one update of
each engine, the newest, however slowly it reads.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress

import msgspec

from miniserve.server.backend import Running
from miniserve.server.errors import busy
from miniserve.server.view.records import Engine, Update

MAX_WATCHERS = 32
LOOK_S = 0.5  # how often a watcher looks how the engine is
SILENCE_S = 10.0  # then a comment, so that both ends know of each other


class _Watcher:
    """One open stream: what it has not been sent yet, by engine."""

    def __init__(self, pending: Mapping[str, bytes]) -> None:
        self.pending, self.news = dict(pending), asyncio.Event()
        if pending:
            self.news.set()

    def put(self, engine: str, event: bytes) -> None:
        self.pending[engine] = event
        self.news.set()

    async def take(self) -> bytes:
        """The newest of each engine that has said something; b"" if none has for a while."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.news.wait(), LOOK_S)
        self.news.clear()
        events, self.pending = self.pending, {}
        return b"".join(events.values())


class Watchers:
    """Everybody who watches one engine, or several.

    Args:
        engine: whom they watch.
        model: the name that requests give.
    """

    def __init__(self, engine: Running, model: str) -> None:
        self._engine, self._model = engine, model
        self._watchers: set[_Watcher] = set()
        self._latest: dict[str, bytes] = {}
        engine.on_update = self._put

    @property
    def state(self) -> Engine:
        """How the engine is."""
        engine, facts = self._engine, self._engine.facts
        return Engine(
            state="draining" if engine.draining else "ready" if engine.ready else "starting",
            model=self._model,
            description=facts.description,
            num_blocks=facts.num_blocks,
            block_size=facts.block_size,
            budget=facts.max_num_batched_tokens,
            max_num_seqs=facts.max_num_seqs,
            max_model_len=facts.max_model_len,
            restarts=engine.num_restarts,
            engines=engine.states,
        )

    def check_room(self) -> None:
        """Raise an APIError of 429 if there are too many already."""
        if len(self._watchers) >= MAX_WATCHERS:
            raise busy(f"{MAX_WATCHERS} watch already")

    async def events(self) -> AsyncIterator[bytes]:
        """One watcher's stream: until it leaves, or the server is about to end."""
        silent_s = 0.0
        with self._enter() as watcher:
            yield _event("engine", told := self.state)
            while told.state != "draining" or self._engine.num_open:
                event = await watcher.take()
                if (state := self.state) != told:  # first: an update is of an engine that is known to be there
                    event = _event("engine", told := state) + event
                silent_s = 0.0 if event else silent_s + LOOK_S
                if silent_s >= SILENCE_S:
                    event, silent_s = b": still here\n\n", 0.0
                if event:
                    yield event

    @contextmanager
    def _enter(self) -> Iterator[_Watcher]:
        watcher = _Watcher(self._latest)
        if not self._watchers:
            self._engine.watch(True)
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.remove(watcher)
            if not self._watchers:
                self._engine.watch(False)
                self._latest.clear()

    def _put(self, update: Update) -> None:
        event = self._latest[update.engine] = _event("update", update)
        for watcher in self._watchers:
            watcher.put(update.engine, event)


def _event(name: str, data: Engine | Update) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"
