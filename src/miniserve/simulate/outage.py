"""`Outage`: an engine that fails in a simulation, and when."""

import math
from dataclasses import dataclass

from miniserve.errors import InvalidRequestError


@dataclass(frozen=True)
class Outage:
    """An engine fails: what it worked on is begun again elsewhere, from the tokens that have come.

    Attributes:
        at_s: when.
        engine: its index, prefill engines first.
        seconds: until it is there again, with nothing cached.

    Example:
        >>> from miniserve.simulate.build import run
        >>> from miniserve.simulate.outage import Outage
        >>> from miniserve.simulate.scenario import Engines, Scenario, Workload
        >>> down = Outage(at_s=0.5, engine=0, seconds=60)
        >>> asked = Workload(concurrency=8, requests=16, warmup=0)
        >>> tally = run(Scenario("qwen3-8b", (Engines("h100", number=2),), asked, outages=(down,))).tally
        >>> tally.completed, tally.retried
        (16, 4)
    """

    at_s: float
    engine: int
    seconds: float

    def __post_init__(self) -> None:
        if not (0 <= self.at_s < math.inf and 0 <= self.seconds < math.inf):
            message = f"an outage at {self.at_s} s for {self.seconds} s: both must be 0 at least, and finite"
            raise InvalidRequestError(message)

    def check(self, names: list[str]) -> None:
        """Raise InvalidRequestError if there is no such engine among these, and say which there are."""
        if not 0 <= self.engine < len(names):
            there = ", ".join(f"{at}: {name}" for at, name in enumerate(names[:8])) + ", …" * (len(names) > 8)
            raise InvalidRequestError(f"an outage of engine {self.engine}: there are {len(names)} ({there})")
