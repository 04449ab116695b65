"""When requests arrive and how long they are: drawn from distributions. Recorded ones are in `traces`.

Everything here is an iterator that a seed decides, so that memory does not grow with the length of a run. Times are
seconds since the start.
"""

import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

from miniserve.errors import InvalidRequestError

Z90 = 1.2815515655446004  # a normal distribution's 90th percentile, in standard deviations


class Arrival(NamedTuple):
    """One request, before anybody has served it.

    Attributes:
        at_s: when it comes; 0 where requests come when an earlier one has ended.
        prompt_tokens, output_tokens: its lengths, at least 1.
        blocks: names of the prompt's successive blocks, where a trace has them: prompts whose first names are equal
            begin with the same tokens. The last block may be incomplete.
        block_size: tokens of such a block.
        then: what the same user asks when this one has been answered; its `at_s` is the pause before it.
    """

    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    block_size: int = 0
    then: "Arrival | None" = None


@dataclass(frozen=True)
class Lengths:
    """A distribution of numbers of tokens.

    Attributes:
        low, high: the ends of a uniform distribution, or the median and the 90th percentile of a log-normal one.
        lognormal: which of the two. Log-normal numbers are rounded, and are 1 at least.

    Example:
        >>> import random
        >>> from miniserve.workloads.arrivals import Lengths
        >>> Lengths.parse("64-256").draw(random.Random(0))
        162
        >>> Lengths.parse("129/424")
        Lengths(low=129, high=424, lognormal=True)
    """

    low: int
    high: int
    lognormal: bool = False

    @classmethod
    def parse(cls, text: str) -> "Lengths":
        """`128` is always 128, `64-256` uniform, both included, `129/424` log-normal with 90% below 424.

        Raises:
            InvalidRequestError: it is none of these.
        """
        found = re.fullmatch(r"(\d{1,9})(?:([-/])(\d{1,9}))?", text.strip(), re.ASCII)
        if not found:
            message = f"length '{text}' is none of N, LOW-HIGH and MEDIAN/P90, in tokens, such as 128, 64-256, 129/424"
            raise InvalidRequestError(message)
        low, high = int(found[1]), int(found[3] or found[1])
        if not 1 <= low <= high:
            raise InvalidRequestError(f"length '{text}' must have 1 <= {low} <= {high}")
        return cls(low, high, found[2] == "/")

    def __str__(self) -> str:
        """As `parse` reads it."""
        return str(self.low) if self.low == self.high else f"{self.low}{'/' if self.lognormal else '-'}{self.high}"

    def draw(self, rng: random.Random) -> int:
        """One of them."""
        if not self.lognormal:
            return rng.randint(self.low, self.high)
        sigma = math.log(self.high / self.low) / Z90
        return max(1, round(rng.lognormvariate(math.log(self.low), sigma)))


def arrival_times(rate_per_s: float, rng: random.Random, *, cv: float = 1.0) -> Iterator[float]:
    """Moments of arrival without end, `rate_per_s` of them in a second on average. The first is after one gap.

    Args:
        rate_per_s: above 0.
        rng: draws the gaps.
        cv: coefficient of variation of the gaps, which are gamma-distributed: 1 is a Poisson process, 0 is evenly
            spaced, more than 1 comes in bursts.

    Raises:
        InvalidRequestError: a number is out of range.

    Example:
        >>> import random
        >>> from itertools import islice
        >>> from miniserve.workloads.arrivals import arrival_times
        >>> list(islice(arrival_times(2.0, random.Random(0), cv=0), 3))
        [0.5, 1.0, 1.5]
    """
    if not (0 < rate_per_s < math.inf and 0 <= cv < math.inf):
        raise InvalidRequestError(f"rate {rate_per_s} must be above 0, and cv {cv} 0 at least, both finite")
    return _times(1 / rate_per_s, rng, cv)


def _times(mean_s: float, rng: random.Random, cv: float) -> Iterator[float]:
    now_s = 0.0
    while True:
        now_s += rng.gammavariate(cv**-2, mean_s * cv**2) if cv else mean_s
        yield now_s


def drawn(
    prompts: Lengths, outputs: Lengths, rng: random.Random, times: Iterator[float] | None = None
) -> Iterator[Arrival]:
    """Requests without end, of these lengths, at these times or, without times, all at 0.

    Example:
        >>> import random
        >>> from itertools import islice
        >>> from miniserve.workloads.arrivals import Lengths, arrival_times, drawn
        >>> rng = random.Random(0)
        >>> asked = drawn(Lengths.parse("64-256"), Lengths.parse("20"), rng, arrival_times(2.0, rng))
        >>> [(round(each.at_s, 2), each.prompt_tokens, each.output_tokens) for each in islice(asked, 3)]
        [(0.93, 171, 20), (1.08, 194, 20), (1.34, 141, 20)]
    """
    for at_s in repeat(0.0) if times is None else times:
        yield Arrival(at_s, prompts.draw(rng), outputs.draw(rng))
