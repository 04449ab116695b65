"""What tokens cost on devices of some price, which price makes two devices cost the same, and what moves a cost.

Arithmetic and no more: rates are a simulation's or a model's, prices are the catalogue's. A price that nobody states is
not guessed: `break_even` says which one would do.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

MILLION = 1e6
HOUR_S = 3600.0

Case = TypeVar("Case")


def usd_per_million(usd_per_hour: float, tokens_per_s: float) -> float:
    """$ of a million tokens, from devices that together cost so much and yield so many, above 0.

    Example:
        >>> from miniserve.simulate.money import usd_per_million
        >>> round(usd_per_million(usd_per_hour=3.0, tokens_per_s=2000.0), 3)
        0.417
    """
    return usd_per_hour / HOUR_S / tokens_per_s * MILLION


def break_even(tokens_per_s: float, other_tokens_per_s: float, other_usd_per_hour: float) -> float:
    """$ an hour of a device that yields `tokens_per_s`, if its tokens are to cost what the other one's do.

    Example:
        >>> from miniserve.simulate.money import break_even
        >>> break_even(tokens_per_s=3000.0, other_tokens_per_s=2000.0, other_usd_per_hour=3.0)
        4.5
    """
    return other_usd_per_hour * tokens_per_s / other_tokens_per_s


class Swing(NamedTuple):
    """What one assumption does to a cost.

    Attributes:
        name: what is changed, and from what to what.
        low, high: the cost at one end and at the other, whichever is dearer.
    """

    name: str
    low: float
    high: float

    @property
    def width(self) -> float:
        """How far apart they are."""
        return abs(self.high - self.low)


def swings(ends: Mapping[str, tuple[Case, Case]], cost: Callable[[Case], float]) -> list[Swing]:
    """One assumption changed at a time, all others kept: the widest first.

    Args:
        ends: by name, the case with that assumption at one end and at the other.
        cost: of a case.
    """
    found = [Swing(name, cost(low), cost(high)) for name, (low, high) in ends.items()]
    return sorted(found, key=lambda swing: -swing.width)
