"""`Versions`: those of a model, and what is asked of the engines of all of them as a whole: how are they, forget a
tenant's KV, end.

Which are there may grow; those that are loaded answer, and their engines go by both names, `2 decode 0`. Who gets
traffic is not known here. Single-threaded, on one event loop.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from miniserve.errors import InvalidRequestError
from miniserve.server.backend import Backend, EngineReport, delete_everywhere
from miniserve.server.errors import APIError
from miniserve.server.rollout.version import State, Version
from miniserve.server.view.records import EngineState, Update


class Versions:
    """Of one model.

    Args:
        model: the name that requests give.
        versions: all that there are, cold.
        newer: gives versions that have come since, cold, by the names that are known.

    Attributes:
        on_update: takes what is recorded of any engine while it is watched.
    """

    def __init__(
        self, model: str, versions: Sequence[Version], newer: Callable[[Sequence[str]], Sequence[Version]]
    ) -> None:
        self.model, self._versions, self._newer = model, {version.name: version for version in versions}, newer
        self.on_update: Callable[[Update], None] = lambda _: None
        self._draining = self._watched = False

    @property
    def versions(self) -> list[Version]:
        """All of them."""
        return list(self._versions.values())

    def version(self, name: str) -> Version:
        """One of them. Raises APIError: 404, there is none."""
        try:
            return self._known(name)
        except InvalidRequestError as error:
            raise APIError(404, str(error), param="model", code="model_not_found") from error

    def look(self) -> None:
        """Take in versions that have come since."""
        self._versions |= {version.name: version for version in self._newer(list(self._versions))}

    @property
    def draining(self) -> bool:
        """Whether no more is taken."""
        return self._draining

    @draining.setter
    def draining(self, on: bool) -> None:
        self._draining = on
        for backend in self._loaded.values():
            backend.draining = on

    @property
    def num_open(self) -> int:
        """Requests that have not been answered to the end, of every version."""
        return sum(version.num_open for version in self._versions.values())

    @property
    def num_restarts(self) -> int:
        """Of all versions that are loaded."""
        return sum(backend.num_restarts for backend in self._loaded.values())

    @property
    def states(self) -> list[EngineState]:
        """Of every engine."""
        return [
            EngineState(_joined(name, state.name), state.ready, state.restarts, name, backend.facts.num_blocks)
            for name, backend in self._loaded.items()
            for state in backend.states
        ]

    async def stop(self) -> None:
        """End every version; what is open fails."""
        self._draining = True
        await asyncio.gather(*(version.stop() for version in self._versions.values()))

    def fail_all(self, error: APIError) -> None:
        """End everything that is open with an error."""
        for backend in self._loaded.values():
            backend.fail_all(error)

    async def reports(self) -> list[EngineReport]:
        """How each engine of each version is."""
        loaded = self._loaded
        several = await asyncio.gather(*(backend.reports() for backend in loaded.values()))
        return [
            report._replace(name=_joined(name, report.name))
            for name, reports in zip(loaded, several, strict=True)
            for report in reports
        ]

    async def delete_kv(self, cache_salt: str) -> dict[str, int]:
        """Have every version's engines forget a tenant's KV."""
        return await delete_everywhere(self._loaded.values(), cache_salt)

    def watch(self, on: bool) -> None:
        """Have the engines of every version send updates to `on_update`, or no more."""
        self._watched = on
        for backend in self._loaded.values():
            backend.watch(on)

    @property
    def _loaded(self) -> dict[str, Backend]:
        """By version, what has started."""
        ready = (State.CHECKING, State.READY, State.DRAINING)
        return {
            name: version.backend
            for name, version in self._versions.items()
            if version.backend is not None and version.state in ready
        }

    def _known(self, name: str) -> Version:
        if name not in self._versions:
            there = ", ".join(self._versions) or "none"
            raise InvalidRequestError(f"{self.model} has no version {name!r}: there is {there}")
        return self._versions[name]

    async def _load(self, version: Version) -> None:
        """Raises what `Version.load` does."""

        def prepare(backend: Backend) -> None:
            backend.on_update = partial(self._note_update, version.name)
            backend.watch(self._watched)

        await version.load(prepare)

    def _note_update(self, name: str, update: Update) -> None:
        update.engine = _joined(name, update.engine)
        self.on_update(update)


def _joined(version: str, engine: str) -> str:
    """An engine's name among those of all versions."""
    return " ".join(filter(None, (version, engine)))
