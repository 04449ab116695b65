"""`Traffic`: which version of a model answers whom. Values only; what changes it makes another.

A request is placed by a key, the same key always at the same point between 0 and 1. The canary has the points below
its weight. So a user who is named stays with one version, where its prefixes are cached, and a weight that grows moves
keys to the canary, never one of them back.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Self

from miniserve.errors import InvalidRequestError


def point(key: str, use: str = "") -> float:
    """Where a key lies: in [0, 1), as evenly as SHA-256 spreads. One `use` says nothing of another."""
    return int.from_bytes(hashlib.sha256(f"{use}\0{key}".encode()).digest()[:8], "big") / 2**64


@dataclass(frozen=True)
class Traffic:
    """Who answers.

    Attributes:
        stable: the version that answers all that no other does.
        canary: the one on trial; None: none.
        weight: the share of keys that the canary answers, 0 to 1.
        shadow: the one that computes copies, which nobody sees; None: none.
        shadow_share: the share of keys that are copied, 0 to 1.
        previous: what was stable before the last promotion: where a rollback goes; None: nothing was.
    """

    stable: str
    canary: str | None = None
    weight: float = 0.0
    shadow: str | None = None
    shadow_share: float = 1.0
    previous: str | None = None

    def __post_init__(self) -> None:
        for name in ("weight", "shadow_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidRequestError(f"{name} is {getattr(self, name)}: it must be from 0 to 1")
        if self.canary == self.stable:
            raise InvalidRequestError(f"version '{self.canary}' is stable: it cannot be the canary, too")
        if self.canary is None and self.weight:
            raise InvalidRequestError(f"weight is {self.weight}, and there is no canary")

    @property
    def versions(self) -> set[str]:
        """Those that compute anything."""
        return {each for each in (self.stable, self.canary, self.shadow) if each is not None}

    def choose(self, key: str) -> str:
        """The version that answers a key."""
        return self.canary if self.canary is not None and point(key) < self.weight else self.stable

    def copies(self, key: str) -> str | None:
        """The version that computes a copy of what a key asks; None: nobody does."""
        return self.shadow if point(key, "shadow") < self.shadow_share else None

    def promoted(self, version: str) -> Self:
        """With another version stable, and no canary.

        Raises:
            InvalidRequestError: it is stable.
        """
        if version == self.stable:
            raise InvalidRequestError(f"version '{version}' is stable already")
        shadow = None if self.shadow == version else self.shadow
        return replace(self, stable=version, canary=None, weight=0.0, shadow=shadow, previous=self.stable)

    def rolled_back(self) -> Self:
        """Without the canary, if there is one; else with that stable which was before the last promotion.

        Raises:
            InvalidRequestError: there is nothing to go back to.
        """
        if self.canary is not None:
            return replace(self, canary=None, weight=0.0)
        if self.previous is None:
            raise InvalidRequestError(f"version '{self.stable}' has no canary beside it, and none was stable before it")
        return replace(self, stable=self.previous, previous=None)
