"""Who may ask, and how much: API keys, each a tenant with limits of its own.

A key is kept as its SHA-256 only. The slow hashes that passwords need would add nothing: a key is 32 random bytes,
which nobody can guess, however fast the hash; short keys are refused. Digests are compared in constant time, with all
of them. A tenant's cache salt is derived from its key: prompts of two tenants never share KV blocks, so that none can
find out by timing what another one has asked. Without keys there is one tenant, everybody.
Keys may be replaced at any time: one that is gone enters no more; a request that has entered goes on.
"""

import hashlib
import hmac
import math
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from miniserve.errors import InvalidRequestError
from miniserve.server.errors import APIError, busy

MIN_KEY_LENGTH = 20


@dataclass
class Tenant:
    """Who has a key, and what of its limits is used up.

    Args:
        name: for the log.
        sha256: the key's, in hexadecimal; "" for everybody.
        max_concurrent: most requests at once; None: any number.
        requests_per_minute: on average, with as many at once; None: any number.
        may_watch: whether it may see the engine at work, everybody's requests included.
    """

    name: str
    sha256: str
    max_concurrent: int | None = None
    requests_per_minute: int | None = None
    may_watch: bool = False
    num_running: int = 0
    _tokens: float = math.inf
    _refilled_s: float = 0.0

    @property
    def cache_salt(self) -> str:
        """Of its prompts' KV blocks."""
        return hashlib.sha256(f"cache salt of {self.sha256}".encode()).hexdigest() if self.sha256 else ""

    def become(self, other: "Tenant") -> "Tenant":
        """Take another one's name and limits; what is used up stays. Gives this one."""
        self.name, self.may_watch = other.name, other.may_watch
        self.max_concurrent, self.requests_per_minute = other.max_concurrent, other.requests_per_minute
        return self

    def begin(self, now_s: float) -> None:
        """A request comes.

        Raises:
            APIError: 429, it is one too many; says when to try again.
        """
        if self.max_concurrent is not None and self.num_running >= self.max_concurrent:
            raise busy(f"this key may have {self.max_concurrent} requests at once, and has")
        if self.requests_per_minute is not None:
            rate = self.requests_per_minute / 60
            refilled = self._tokens + (now_s - self._refilled_s) * rate
            self._tokens, self._refilled_s = min(refilled, float(self.requests_per_minute)), now_s
            if self._tokens < 1:
                wait = math.ceil((1 - self._tokens) / rate)
                raise busy(f"this key may make {self.requests_per_minute} requests a minute, and has", wait)
            self._tokens -= 1
        self.num_running += 1


class Access:
    """The keys that are known; none at all: everybody may ask."""

    def __init__(self, tenants: Sequence[Tenant] = (), clock: Callable[[], float] = time.monotonic) -> None:
        self._tenants, self._clock = list(tenants), clock
        self._everybody = Tenant("everybody", "", may_watch=True)

    def replace(self, tenants: Sequence[Tenant]) -> None:
        """From now on these are the keys, and no others. A key that stays has used of its limits what it had before.

        Raises:
            InvalidRequestError: there are some now and would be none, which would let everybody in.
        """
        if self._tenants and not tenants:
            raise InvalidRequestError("no key is left")
        known = {tenant.sha256: tenant for tenant in self._tenants}
        self._tenants = [known[each.sha256].become(each) if each.sha256 in known else each for each in tenants]

    @contextmanager
    def enter(self, tenant: Tenant) -> Iterator[None]:
        """The time of one request.

        Raises:
            APIError: 429, beyond the key's limits.
        """
        tenant.begin(self._clock())
        try:
            yield
        finally:
            tenant.num_running -= 1

    def lets_watch(self, authorization: str | None) -> bool:
        """Whether who asks may see everybody's requests: by its key, or because there are no keys.

        Raises:
            APIError: 401, it has given a key that is not known.
        """
        if authorization is None and self._tenants:
            return False
        return self.find(authorization).may_watch

    def named(self, name: str) -> Tenant:
        """The tenant of that name. Raises APIError: 404, there is none."""
        for tenant in self._tenants or [self._everybody]:
            if tenant.name == name:
                return tenant
        raise APIError(404, f"there is no tenant {name!r}", param="name", code="tenant_not_found")

    def find(self, authorization: str | None) -> Tenant:
        """Who asks.

        Args:
            authorization: the header of that name, `Bearer KEY`.

        Raises:
            APIError: 401, without a known key.
        """
        if not self._tenants:
            return self._everybody
        scheme, _, key = (authorization or "").partition(" ")
        digest = hash_key(key.strip())
        known = [tenant for tenant in self._tenants if hmac.compare_digest(tenant.sha256, digest)]
        if scheme.lower() != "bearer" or not known:
            message = "the API key is not known" if authorization else "an API key is needed: Authorization: Bearer KEY"
            raise APIError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        return known[0]


def hash_key(key: str) -> str:
    """What is kept of a key: its SHA-256 in hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    """A key of 32 random bytes."""
    return f"sk-{secrets.token_urlsafe(32)}"


def tenant_of(name: str, key: str) -> Tenant:
    """A tenant without limits, who may watch.

    Raises:
        InvalidRequestError: the key is short enough to be guessed.
    """
    if len(key) < MIN_KEY_LENGTH:
        raise InvalidRequestError(f"the API key has {len(key)} characters: it needs at least {MIN_KEY_LENGTH}")
    return Tenant(name, hash_key(key), may_watch=True)
