"""`Lineup`: the versions behind the name that requests give, and which of them gets which.

A server of one model without versions is a lineup of one. What is asked of the engines as a whole is asked of every
version that is loaded (`Versions`); whether requests are taken is the stable one's to say.

Invariants: the stable version is ready from `start` to `stop`; who gets traffic is never unloaded; changing who gets
it takes no time and touches no request that has begun, wherever it runs.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from miniserve.errors import MiniserveError
from miniserve.server.backend import Backend
from miniserve.server.errors import APIError, unavailable
from miniserve.server.messages import Facts
from miniserve.server.rollout.traffic import Traffic
from miniserve.server.rollout.version import Version
from miniserve.server.rollout.versions import Versions

logger = logging.getLogger(__name__)


class Lineup(Versions):
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
        super().__init__(model, versions, newer)
        self._warm, self._on_stable = list(warm), on_stable
        self.traffic = Traffic(self._known(stable).name)

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
    def facts(self) -> Facts:
        """Of the stable version."""
        return self._stable.facts

    @property
    def ready(self) -> bool:
        """Whether the stable version takes requests."""
        return not self._draining and self._versions[self.traffic.stable].ready

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

    @property
    def _stable(self) -> Backend:
        return self._versions[self.traffic.stable].engine

    def _choose(self, key: str) -> Version:
        """By weight. A canary whose engine has died answers nobody until it is there again."""
        chosen = self._versions[self.traffic.choose(key)]
        return chosen if chosen.ready else self._versions[self.traffic.stable]
