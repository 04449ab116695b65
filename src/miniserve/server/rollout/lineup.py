"""`Lineup`: the versions behind the name that requests give, and which of them gets which.

A server of one model without versions is a lineup of one. What is asked of the engines as a whole (are they ready, how
are they, end them) is asked of every version that is loaded; whether requests are taken is the stable one's to say.

Invariants: the stable version is ready from `start` to `stop`; who gets traffic is never unloaded; changing who gets
it takes no time and touches no request that has begun, wherever it runs.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from miniserve.errors import InvalidRequestError, MiniserveError
from miniserve.server.backend import Backend, EngineReport, delete_everywhere
from miniserve.server.errors import APIError, unavailable
from miniserve.server.messages import Facts
from miniserve.server.rollout.traffic import Traffic
from miniserve.server.rollout.version import State, Version
from miniserve.server.view.records import EngineState, Update

logger = logging.getLogger(__name__)


class Lineup:
    """Of one model. It is `Running`, as a whole.

    Args:
        model: the name that requests give; `model@version` asks for one version.
        versions: all that there are, cold.
        stable: the name of the one that answers.
        warm: names of others to load at the start.
        on_stable: told which version is about to become stable; what it raises, prevents it.
        newer: gives versions that have come since, cold, by the names that are known.

    Attributes:
        traffic: who answers whom.
    """

    def __init__(
        self,
        model: str,
        versions: Sequence[Version],
        stable: str = "",
        *,
        warm: Sequence[str] = (),
        on_stable: Callable[[str], None] = lambda _: None,
        newer: Callable[[Sequence[str]], Sequence[Version]] = lambda _: (),
    ) -> None:
        self.model, self._versions = model, {version.name: version for version in versions}
        self._warm, self._on_stable, self._newer = list(warm), on_stable, newer
        self.traffic = Traffic(self._known(stable).name)
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

    @contextmanager
    def pick(self, model: str, key: str, wanted: str = "") -> Iterator[tuple[str, Backend]]:
        """Who answers a request: a version's name, and what computes it, until the engine has accepted it.

        Args:
            model: as the request says.
            key: places it; see `Traffic`.
            wanted: a version that is asked for; "": none is.

        Raises:
            APIError: 404, there is no such model or version; 503, it is not ready.
        """
        name, at, version = model.rpartition("@")
        pinned = at and name == self.model
        if not pinned and model != self.model:
            message = f"there is no model {model!r} here, only {self.model!r}"
            raise APIError(404, message, param="model", code="model_not_found")
        if self._draining:
            raise unavailable("the server is shutting down")
        chosen = self.version(version if pinned else wanted) if pinned or wanted else self._choose(key)
        with chosen.lease() as engine:
            yield chosen.name, engine

    def look(self) -> None:
        """Take in versions that have come since."""
        self._versions |= {version.name: version for version in self._newer(list(self._versions))}

    # Changes, none of which a running request notices.

    async def load(self, name: str) -> Version:
        """Load a version and have it checked; it gets no traffic by that. Raises what `Version.load` does."""
        self.look()
        version = self.version(name)
        try:
            await self._load(version)
        except MiniserveError:
            logger.error("version failed", extra={"version": name, "reason": version.reason})
            raise
        return version

    async def unload(self, name: str) -> Version:
        """Let a version end what it has, then end it.

        Raises:
            APIError: 404, 409; it gets traffic, or is not ready.
        """
        version = self.version(name)
        if name in self.traffic.versions:
            raise APIError(409, f"version {name} gets traffic: it cannot be unloaded", code="conflict")
        await version.unload()
        return version

    def direct(self, traffic: Traffic) -> None:
        """From now on, traffic goes so.

        Raises:
            APIError: 404 or 503, a version is not there, or not ready.
        """
        for name in traffic.versions:
            _ = self.version(name).engine
        if traffic.stable != self.traffic.stable:
            self._on_stable(traffic.stable)
        self.traffic = traffic

    # As a whole.

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
    def facts(self) -> Facts:
        """Of the stable version."""
        return self._stable.facts

    @property
    def ready(self) -> bool:
        """Whether the stable version takes requests."""
        return not self._draining and self._versions[self.traffic.stable].ready

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

    def check_ready(self) -> None:
        """Raise an APIError of 503 unless the stable version takes requests."""
        if self._draining:
            raise unavailable("the server is shutting down")
        self._stable.check_ready()

    async def start(self) -> None:
        """Load the stable version, then those that are to be warm, one after the other.

        Raises:
            MiniserveError: the stable one cannot be loaded, or does not pass. Another that fails is in the log.
        """
        await self._load(self._versions[self.traffic.stable])
        for name in self._warm:
            if name != self.traffic.stable:
                try:
                    await self.load(name)
                except MiniserveError:
                    continue

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

    @property
    def _stable(self) -> Backend:
        return self._versions[self.traffic.stable].engine

    def _choose(self, key: str) -> Version:
        """By weight. A canary whose engine has died answers nobody until it is there again."""
        chosen = self._versions[self.traffic.choose(key)]
        return chosen if chosen.ready else self._versions[self.traffic.stable]

    def _known(self, name: str) -> Version:
        if name not in self._versions:
            there = ", ".join(self._versions) or "none"
            raise InvalidRequestError(f"{self.model} has no version {name!r}: there is {there}")
        return self._versions[name]

    async def _load(self, version: Version) -> None:
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
