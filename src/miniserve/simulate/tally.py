"""What is counted while a simulation runs, in memory that does not grow with its length.

Latencies go into `Sketch`es: logarithmic buckets, whose percentiles are within 0.5% of the exact ones (the idea of
DDSketch: Masson, Rim and Lee 2019). Whether a request met its SLO is decided when it ends, from its own numbers.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from miniserve.workloads.service import PERCENTILES, SLO

RELATIVE_ERROR = 0.005
_GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_PER_LOG = 1 / math.log(_GAMMA)


class Sketch:
    """A distribution of numbers that are 0 or more.

    Example:
        >>> from miniserve.simulate.tally import Sketch
        >>> sketch = Sketch()
        >>> for value in range(1, 101):
        ...     sketch.add(value)
        >>> round(sketch.percentile(50)), round(sketch.percentile(99))
        (50, 99)
    """

    def __init__(self) -> None:
        self.count, self.total, self.most = 0, 0.0, 0.0
        self._buckets: Counter[int] = Counter()
        self._zeros = 0

    def add(self, value: float, times: int = 1) -> None:
        """Take note of `value`, as often as it came."""
        self.count += times
        self.total += value * times
        self.most = max(self.most, value)
        if value > 0:
            self._buckets[math.ceil(math.log(value) * _PER_LOG)] += times
        else:
            self._zeros += times

    def add_all(self, values: npt.NDArray[np.float64], times: int = 1) -> None:
        """As `add`, of several, all above 0. Shape [n]."""
        self.count += times * len(values)
        self.total += times * float(values.sum())
        self.most = max(self.most, float(values.max()))
        buckets, numbers = np.unique(np.ceil(np.log(values) * _PER_LOG), return_counts=True)
        for bucket, number in zip(buckets.tolist(), numbers.tolist(), strict=True):
            self._buckets[int(bucket)] += times * number

    def percentile(self, rank: float) -> float:
        """The smallest value below or at which `rank` percent of all are, within 0.5%; NaN of nothing."""
        if not self.count:
            return math.nan
        wanted, below = max(1, math.ceil(rank / 100 * self.count)), self._zeros
        if below >= wanted:
            return 0.0
        for bucket in sorted(self._buckets):
            below += self._buckets[bucket]
            if below >= wanted:
                return min(self.most, 2 * _GAMMA**bucket / (1 + _GAMMA))
        raise AssertionError("every value is in a bucket")

    def shares(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """For drawing: values, ascending, and the share of all that is at or below each. Shapes [n]."""
        buckets = sorted(self._buckets)
        numbers = [self._zeros] * (self._zeros > 0) + [self._buckets[bucket] for bucket in buckets]
        values = [0.0] * (self._zeros > 0) + [min(self.most, 2 * _GAMMA**bucket / (1 + _GAMMA)) for bucket in buckets]
        return np.array(values), np.cumsum(numbers) / max(1, self.count)

    def spread(self) -> dict[str, float] | None:
        """As `workloads.service.spread`."""
        if not self.count:
            return None
        ranks = {f"p{rank}": self.percentile(rank) for rank in PERCENTILES}
        return {"mean": self.total / self.count} | ranks | {"max": self.most}


@dataclass(slots=True)
class Served:
    """One request on its way: what its user has seen of it.

    Attributes:
        due_s: when it came.
        prompt_tokens, output_tokens: its lengths; of the output, what has come.
        cached_tokens, loaded_tokens: of the prompt, what its engine had, and what came from each tier, by name.
        first_s, last_s: when the first and the newest token came.
        worst_gap_s: the longest time between two tokens.
    """

    due_s: float
    prompt_tokens: int
    output_tokens: int = 0
    cached_tokens: int = 0
    loaded_tokens: Mapping[str, int] = field(default_factory=dict)
    first_s: float = math.nan
    last_s: float = math.nan
    worst_gap_s: float = 0.0

    def meets(self, slo: SLO) -> bool:
        """Whether it was served within all limits."""
        several = self.output_tokens > 1
        tpot_s = (self.last_s - self.first_s) / (self.output_tokens - 1) if several else 0.0
        return (
            self.first_s - self.due_s <= slo.ttft_s
            and self.last_s - self.due_s <= slo.e2e_s
            and tpot_s <= slo.tpot_s
            and self.worst_gap_s <= slo.itl_s
        )


@dataclass
class Tally:
    """Of one simulation.

    Attributes:
        slo: what counts as good.
        ttft, tpot, e2e: distributions over requests, in seconds: time to the first token, mean time between the tokens
            after it, time to the end.
        itl: of every gap between tokens, in seconds.
        completed, met: requests that ended, and those of them within the limits.
        prompt_tokens, cached_tokens, output_tokens: of these requests; of the prompts, what was found on the device.
        retried: requests that were begun again after an engine had failed.
        tasks: that are done: whole sessions, or requests that belong to none.
        loaded_tokens: of prompts, by the tier that they came from.
        rejected: requests that can never fit, by reason.
    """

    slo: SLO
    ttft: Sketch = field(default_factory=Sketch)
    itl: Sketch = field(default_factory=Sketch)
    tpot: Sketch = field(default_factory=Sketch)
    e2e: Sketch = field(default_factory=Sketch)
    completed: int = 0
    tasks: int = 0
    met: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    loaded_tokens: Counter[str] = field(default_factory=Counter)
    output_tokens: int = 0
    retried: int = 0
    rejected: Counter[str] = field(default_factory=Counter)

    def run(self, ends_s: Sequence[float], requests: int) -> float:
        """Several requests got a token each at these moments: the gaps between them. Returns the longest."""
        if len(ends_s) < 2 or not requests:
            return 0.0
        gaps_s = np.diff(ends_s)
        self.itl.add_all(gaps_s, requests)
        return float(gaps_s.max())

    def tokens(self, served: Served, ends_s: Sequence[float], longest_s: float) -> None:
        """One of them did.

        Args:
            served: which.
            ends_s: at these moments.
            longest_s: what `run` said.
        """
        if served.output_tokens:
            gap_s = ends_s[0] - served.last_s
            self.itl.add(gap_s)
            served.worst_gap_s = max(served.worst_gap_s, gap_s)
        else:
            served.first_s = ends_s[0]
            self.ttft.add(ends_s[0] - served.due_s)
        served.worst_gap_s = max(served.worst_gap_s, longest_s)
        served.last_s = ends_s[-1]
        served.output_tokens += len(ends_s)

    def ended(self, served: Served, *, is_task: bool) -> None:
        """It is complete, and with it, perhaps, what its user wanted done."""
        self.completed += 1
        self.tasks += is_task
        self.met += served.meets(self.slo)
        self.prompt_tokens += served.prompt_tokens
        self.cached_tokens += served.cached_tokens
        self.loaded_tokens.update(served.loaded_tokens)
        self.output_tokens += served.output_tokens
        self.e2e.add(served.last_s - served.due_s)
        if served.output_tokens > 1:
            self.tpot.add((served.last_s - served.first_s) / (served.output_tokens - 1))

    def summary(self, seconds: float) -> dict[str, Any]:
        """Counts, rates over `seconds`, spreads."""
        requests = self.completed + sum(self.rejected.values())
        return {
            "seconds": seconds,
            "requests": requests,
            "completed": self.completed,
            "tasks": self.tasks,
            "rejected": dict(self.rejected),
            "retried": self.retried,
            "requests_per_s": self.completed / seconds if seconds else 0.0,
            "output_tokens_per_s": self.output_tokens / seconds if seconds else 0.0,
            "prompt_tokens_per_s": self.prompt_tokens / seconds if seconds else 0.0,
            "cached_share": self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0,
            "loaded_shares": {name: tokens / self.prompt_tokens for name, tokens in self.loaded_tokens.items()},
            "ttft_s": self.ttft.spread(),
            "itl_s": self.itl.spread(),
            "tpot_s": self.tpot.spread(),
            "e2e_s": self.e2e.spread(),
            "goodput_per_s": self.met / seconds if seconds else 0.0,
            "slo_attainment": self.met / requests if requests else None,
        }
