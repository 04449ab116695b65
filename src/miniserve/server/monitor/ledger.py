"""`Ledger`: what requests for output came to, by tenant and version, since the server started.

Tenants are those of the file of keys and versions those of the registry, so that there are few of both; no user, path
or prompt is ever a key. What has not ended is not in it. It is counted once, by `Metered`, and read by `/metrics` and
`/usage`.
"""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from miniserve.core.histogram import LATENCY_BUCKETS_S, Histogram
from miniserve.server.monitor.meter import CLIENT_LEFT, Meter
from miniserve.workloads.service import SLO

#: Of a status: answered, refused as one too many, left by its client, refused for another reason, failed.
CLASSES = ("2xx", "429", str(CLIENT_LEFT), "4xx", "5xx")


def status_class(status: int) -> str:
    """One of `CLASSES`."""
    return str(status) if status in (429, CLIENT_LEFT) else f"{max(status, 200) // 100}xx"


@dataclass
class Account:
    """Of one tenant and one version, or of several together.

    Attributes:
        requests: by class of status.
        prompt_tokens, cached_tokens, output_tokens: a prompt counts once; of it, what had not to be computed.
        spent_s: their share of the engines' time.
        seconds: how long each took.
        judged, good: requests that say something of the objective, and those of them that met it.
    """

    requests: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(CLASSES, 0)))
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    spent_s: float = 0.0
    seconds: Histogram = field(default_factory=lambda: Histogram(LATENCY_BUCKETS_S))
    judged: int = 0
    good: int = 0

    def enter(self, status: int, meter: Meter, met: bool | None) -> None:
        """One request has ended."""
        self.requests[status_class(status)] += 1
        self.seconds.observe(meter.seconds)
        self.spent_s += meter.spent_s
        if meter.usage:
            self.prompt_tokens += meter.usage.prompt_tokens
            self.cached_tokens += meter.usage.prompt_tokens_details.cached_tokens
            self.output_tokens += meter.usage.completion_tokens
        self.judged += met is not None
        self.good += met is True

    def add(self, other: "Account") -> None:
        """Take another one in."""
        self.requests.update(other.requests)
        for name in ("prompt_tokens", "cached_tokens", "output_tokens", "spent_s", "judged", "good"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.seconds.add(other.seconds)


class Ledger:
    """All accounts.

    Args:
        slo: what a request has to keep to be good; None: nothing is judged.
        price_per_hour: of all that the server runs on, in any currency; None: nobody has said.

    Attributes:
        accounts: by tenant and version, "" where there is none: a key that is not known, a model without versions.
        started_s: when this began, in Unix time.
    """

    def __init__(self, slo: SLO | None = None, price_per_hour: float | None = None) -> None:
        self.slo, self.price_per_hour = slo, price_per_hour
        self.accounts: dict[tuple[str, str], Account] = {}
        self.started_s = time.time()
        self._started_s = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since this began."""
        return time.monotonic() - self._started_s

    def enter(self, tenant: str, version: str, status: int, meter: Meter, *, was_taken: bool) -> None:
        """One request has ended.

        Args:
            tenant, version: see `accounts`.
            status: of HTTP; what the meter knows of a failure goes before it.
            meter: its own.
            was_taken: see `Meter.met`.
        """
        status = meter.failure or status
        met = meter.met(self.slo, status, was_taken=was_taken) if self.slo else None
        self.accounts.setdefault((tenant, version), Account()).enter(status, meter, met)

    def by_version(self) -> dict[str, Account]:
        """Tenants together."""
        return _together((version, account) for (_, version), account in self.accounts.items())

    def by_tenant(self) -> dict[str, Account]:
        """Versions together."""
        return _together((tenant, account) for (tenant, _), account in self.accounts.items())


def _together(accounts: Iterable[tuple[str, Account]]) -> dict[str, Account]:
    found: dict[str, Account] = {}
    for name, account in accounts:
        found.setdefault(name, Account()).add(account)
    return found
