"""How well requests were served: what each one's user saw, percentiles over them, and goodput.

A request that failed has no latencies: it can neither be fast nor meet a service level objective (SLO).
All times are seconds of one clock, real or virtual.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from miniserve.errors import InvalidRequestError

PERCENTILES = (50, 90, 99)


@dataclass(slots=True)
class Service:
    """What the user of one request saw.

    Attributes:
        due_s: when it should have been sent: latencies count from here, so that a sender that is late, because the
            server is slow, makes nothing look fast.
        sent_s: when it was.
        arrivals_s: when parts of the output came, each of one token or of several.
        prompt_tokens, output_tokens: as the server counted; `cached_tokens` of the prompt it had in its cache.
        ended_s: when the response was complete, or had failed.
        error: the kind of failure; None: it has not failed.
    """

    due_s: float
    sent_s: float
    arrivals_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    ended_s: float = math.nan
    error: str | None = None

    @property
    def ttft_s(self) -> float:
        """Time to the first token."""
        return self.arrivals_s[0] - self.due_s

    @property
    def gaps_s(self) -> list[float]:
        """Inter-token latencies (ITL): the times between parts of the output."""
        return [later - earlier for earlier, later in zip(self.arrivals_s, self.arrivals_s[1:], strict=False)]

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None if there was only one. The mean ITL, if each part is a token."""
        if self.output_tokens < 2:
            return None
        return (self.arrivals_s[-1] - self.arrivals_s[0]) / (self.output_tokens - 1)

    @property
    def e2e_s(self) -> float:
        """Time to the end of the response."""
        return self.ended_s - self.due_s


@dataclass(frozen=True)
class SLO:
    """Limits that a request must meet, all of them, in seconds; infinite: none.

    Attributes:
        ttft_s: of the time to the first token.
        itl_s: of every single gap between parts of the output.
        tpot_s: of the mean time per token after the first.
        e2e_s: of the time to the end.

    Example:
        >>> from miniserve.workloads.service import SLO, Service
        >>> slo = SLO.parse("ttft:500,tpot:50")
        >>> slo
        SLO(ttft_s=0.5, itl_s=inf, tpot_s=0.05, e2e_s=inf)
        >>> quick = Service(due_s=0.0, sent_s=0.0, arrivals_s=[0.2, 0.24], output_tokens=2, ended_s=0.24)
        >>> quick.ttft_s, slo.met_by(quick)
        (0.2, True)
    """

    ttft_s: float = math.inf
    itl_s: float = math.inf
    tpot_s: float = math.inf
    e2e_s: float = math.inf

    @classmethod
    def parse(cls, text: str) -> "SLO":
        """`ttft:500,itl:50`: milliseconds by name; the names are ttft, itl, tpot and e2e.

        Raises:
            InvalidRequestError: a name is unknown or comes twice, or a limit is not above 0.
        """
        limits: dict[str, float] = {}
        for part in text.split(","):
            name, _, value = (piece.strip() for piece in part.partition(":"))
            try:
                limit = float(value)
            except ValueError:
                limit = math.nan
            if name not in ("ttft", "itl", "tpot", "e2e") or f"{name}_s" in limits or not 0 < limit < math.inf:
                message = f"SLO '{part}' is not one of ttft, itl, tpot, e2e, once, with milliseconds, as in ttft:500"
                raise InvalidRequestError(message)
            limits[f"{name}_s"] = limit / 1000
        return cls(**limits)

    def as_dict(self) -> dict[str, float]:
        """The limits there are."""
        return {name: limit for name, limit in asdict(self).items() if limit < math.inf}

    def met_by(self, service: Service) -> bool:
        """Whether it ended without an error within all limits."""
        return service.error is None and self.holds(
            ttft_s=service.ttft_s,
            itl_s=max(service.gaps_s, default=0.0),
            tpot_s=service.tpot_s or 0.0,
            e2e_s=service.e2e_s,
        )

    def holds(self, *, ttft_s: float, itl_s: float, tpot_s: float, e2e_s: float) -> bool:
        """Whether all are within the limits; `itl_s` is the longest gap."""
        return ttft_s <= self.ttft_s and itl_s <= self.itl_s and tpot_s <= self.tpot_s and e2e_s <= self.e2e_s


def spread(values: Sequence[float] | Iterable[float]) -> dict[str, float] | None:
    """`mean`, `p50`, `p90`, `p99` (linear between the two nearest values) and `max`; None of nothing.

    Example:
        >>> from miniserve.workloads.service import spread
        >>> spread([1.0, 2.0, 3.0])
        {'mean': 2.0, 'p50': 2.0, 'p90': 2.8, 'p99': 2.98, 'max': 3.0}
    """
    array = np.fromiter(values, dtype=np.float64)
    if not array.size:
        return None
    found = np.percentile(array, PERCENTILES)
    ranks = {f"p{rank}": float(value) for rank, value in zip(PERCENTILES, found, strict=True)}
    return {"mean": float(array.mean())} | ranks | {"max": float(array.max())}


def summary(services: Sequence[Service], seconds: float, slo: SLO | None = None) -> dict[str, Any]:
    """Counts, rates over `seconds`, and the spread of each latency over the requests that did not fail.

    Tokens of failed requests do not count: nobody got a whole reply. With an `slo`, goodput is the rate of requests
    that met it, and attainment their share of all, failed ones included.

    Example:
        >>> from miniserve.workloads.service import SLO, Service, summary
        >>> served = Service(0.0, 0.0, [0.2, 0.3], prompt_tokens=9, output_tokens=2, ended_s=0.3)
        >>> failed = Service(0.0, 0.0, ended_s=1.0, error="timeout")
        >>> found = summary([served, failed], seconds=1.0, slo=SLO.parse("ttft:500"))
        >>> found["goodput_per_s"], found["slo_attainment"], found["errors"]
        (1.0, 0.5, {'timeout': 1})
    """
    good = [service for service in services if service.error is None]
    output = sum(service.output_tokens for service in good)
    parts = sum(len(service.arrivals_s) for service in good)
    errors: Mapping[str, int] = Counter(service.error for service in services if service.error is not None)
    found: dict[str, Any] = {
        "seconds": seconds,
        "requests": len(services),
        "completed": len(good),
        "errors": dict(errors),
        "requests_per_s": len(good) / seconds,
        "output_tokens_per_s": output / seconds,
        "prompt_tokens_per_s": sum(service.prompt_tokens for service in good) / seconds,
        "prompt_tokens": spread(service.prompt_tokens for service in good),
        "output_tokens": spread(service.output_tokens for service in good),
        "cached_prompt_tokens": sum(service.cached_tokens for service in good),
        "tokens_per_part": output / parts if parts else None,
        "ttft_s": spread(service.ttft_s for service in good),
        "itl_s": spread(gap for service in good for gap in service.gaps_s),
        "tpot_s": spread(tpot for service in good if (tpot := service.tpot_s) is not None),
        "e2e_s": spread(service.e2e_s for service in good),
    }
    if slo is not None:
        met = sum(slo.met_by(service) for service in services)
        found["goodput_per_s"] = met / seconds
        found["slo_attainment"] = met / len(services) if services else None
    return found
