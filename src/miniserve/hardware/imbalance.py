"""How much busier the busiest of a mixture's ranks is than the mean, if its experts are chosen by a power law.

Loads of experts are the quantiles of a density that falls as x^-exponent between 1 and `SPAN`: exponent 0 is uniform
in x, and with 1.01 and 1.2, the exponents that operator databases time kernels under (NVIDIA's AIConfigurator), a few
experts get most. A token chooses different experts, so none can have more than all tokens: a load that would be above
that is all tokens, and the others share what is left (`_possible`). Where an expert lands is chance: the result is the
mean over `PLACEMENTS` shuffles from a fixed seed.
Redundant experts are copies of the busiest, one after the other, each of which halves a load (the first step of
DeepSeek's EPLB); nothing else is done here to even things out.
"""

import heapq
import math
import random
from functools import cache

from miniserve.errors import InvalidRequestError
from miniserve.hardware.shape import Experts, Parallel

SPAN = 5000.0  # the most popular expert's load, in the least popular one's
PLACEMENTS = 64


def power_law_imbalance(exponent: float, experts: Experts, parallel: Parallel) -> float:
    """The busiest rank's share of the tokens' visits to experts, as a multiple of the mean; 1 for one rank alone.

    With k of E experts a token and h of them a rank, it is R · min(h, k) / k at most, where there are no copies.

    Raises InvalidRequestError for an exponent below 0, or experts that cannot be shared out.
    """
    if not 0 <= exponent < math.inf:
        raise InvalidRequestError(f"a power law's exponent of {exponent}: it must be 0 or more")
    slots = experts.count + parallel.redundant
    if slots % parallel.expert:
        raise InvalidRequestError(f"{slots} experts cannot be shared out among {parallel.expert} ranks")
    if parallel.expert == 1:
        return 1.0
    return _mean_of_placements(exponent, experts.count, experts.per_token, parallel.redundant, parallel.expert)


@cache
def _mean_of_placements(exponent: float, experts: int, per_token: int, redundant: int, ranks: int) -> float:
    drawn = [_quantile(exponent, (at + 0.5) / experts) for at in range(experts)]
    loads = _with_copies(_possible(drawn, per_token), redundant)
    each, mean = len(loads) // ranks, sum(loads) / ranks
    rng, total = random.Random(0), 0.0
    for _ in range(PLACEMENTS):
        rng.shuffle(loads)
        total += max(sum(loads[at : at + each]) for at in range(0, len(loads), each))
    return total / PLACEMENTS / mean


def _quantile(exponent: float, share: float) -> float:
    """Below which so large a share of the experts' loads lies."""
    if math.isclose(exponent, 1):
        return float(SPAN**share)
    rest = 1 - exponent
    return float((share * (SPAN**rest - 1) + 1) ** (1 / rest))


def _possible(loads: list[float], per_token: int) -> list[float]:
    """As shares of the tokens, of which each expert has all at most; together `per_token`. Proportions are kept below.

    Args:
        loads: of each expert, in any unit, above 0; at least `per_token` of them.
        per_token: experts of a token.
    """
    left, shares = float(per_token), [0.0] * len(loads)
    weight = sum(loads)
    for at in sorted(range(len(loads)), key=lambda at: -loads[at]):
        shares[at] = min(1.0, left * loads[at] / weight)
        left, weight = left - shares[at], weight - loads[at]
    return shares


def _with_copies(loads: list[float], redundant: int) -> list[float]:
    """A copy of the busiest, so often; copies of one expert share its load."""
    busiest = [(-load, load, 1) for load in loads]
    heapq.heapify(busiest)
    for _ in range(redundant):
        _, load, copies = heapq.heappop(busiest)
        heapq.heappush(busiest, (-load / (copies + 1), load, copies + 1))
    return [load / copies for _, load, copies in sorted(busiest) for _ in range(copies)]
