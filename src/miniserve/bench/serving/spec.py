"""`LoadSpec`: what load to put on a server, and the requests it consists of."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from miniserve.errors import InvalidRequestError
from miniserve.workloads.arrivals import Arrival, Lengths, arrival_times, drawn
from miniserve.workloads.service import SLO
from miniserve.workloads.traces import origin, read_trace

DEFAULT_PROMPTS, DEFAULT_OUTPUTS = Lengths(128, 128), Lengths(64, 64)


@dataclass(frozen=True)
class LoadSpec:
    """One load. Of `concurrency`, `rate_per_s` and `trace` one is given.

    Attributes:
        concurrency: users of a closed loop.
        rate_per_s, cv: of an open loop; see `arrival_times`.
        trace, speed: an open loop from a file; see `read_trace`.
        prompts, outputs: lengths, where no trace has them.
        num_requests: most requests; None: until the time is up or the trace ends.
        duration_s: seconds after which none is sent.
        warmup: requests before, not counted.
        seed: of all that is drawn.
        slo: for goodput.

    Raises:
        InvalidRequestError: it would never end, or is not one load.
    """

    concurrency: int | None = None
    rate_per_s: float | None = None
    cv: float = 1.0
    trace: Path | None = None
    speed: float = 1.0
    prompts: Lengths = DEFAULT_PROMPTS
    outputs: Lengths = DEFAULT_OUTPUTS
    num_requests: int | None = None
    duration_s: float = math.inf
    warmup: int = 0
    seed: int = 0
    slo: SLO | None = None

    def __post_init__(self) -> None:
        """See the class."""
        if sum(each is not None for each in (self.concurrency, self.rate_per_s, self.trace)) != 1:
            raise InvalidRequestError("give one of concurrency, rate and trace")
        if self.trace is None and self.num_requests is None and math.isinf(self.duration_s):
            raise InvalidRequestError("give num_requests or duration: nothing else ends this load")
        if not (0 < self.speed < math.inf and self.duration_s > 0):
            raise InvalidRequestError(f"speed {self.speed} and duration {self.duration_s} must be above 0")
        if self.rate_per_s is not None:
            arrival_times(self.rate_per_s, random.Random(), cv=self.cv)

    def arrivals(self) -> Iterator[Arrival]:
        """The requests that are counted. A trace is read to its end first: a bad line shall not spoil a long run."""
        rng = random.Random(f"load {self.seed}")
        if self.trace is not None:
            return iter([*islice(read_trace(self.trace, speed=self.speed), self.num_requests)])
        times = None if self.rate_per_s is None else arrival_times(self.rate_per_s, rng, cv=self.cv)
        return islice(drawn(self.prompts, self.outputs, rng, times), self.num_requests)

    def warm_ups(self) -> Iterator[Arrival]:
        """Of the same lengths, with contents of their own."""
        rng = random.Random(f"warm-up {self.seed}")
        found = drawn(self.prompts, self.outputs, rng) if self.trace is None else read_trace(self.trace)
        return (arrival._replace(blocks=()) for arrival in islice(found, self.warmup))

    def as_dict(self) -> dict[str, Any]:
        """For the record: what was asked for, and of a trace, which file that is."""
        if self.trace is not None:
            return {"loop": "open", "trace": origin(self.trace), "speed": self.speed, "seed": self.seed}
        if self.concurrency is not None:
            kind: dict[str, Any] = {"loop": "closed", "concurrency": self.concurrency}
        else:
            kind = {"loop": "open", "rate_per_s": self.rate_per_s, "cv": self.cv}
        lengths = {"prompt_tokens": str(self.prompts), "output_tokens": str(self.outputs)}
        return kind | lengths | {"seed": self.seed}
