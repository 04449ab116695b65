"""Throughput against speed: what a device yields at each speed that a user sees, over the number of users at once.

More users make a batch larger and each token later. `frontier` keeps those points that no other one beats in both.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from miniserve.errors import InvalidRequestError

MOST_POINTS = 64


class Point(NamedTuple):
    """One simulation.

    Attributes:
        concurrency: users at once.
        speed: tokens a second that a user gets: the inverse of the median TPOT.
        throughput: output tokens a second and device.
        report: all of it.
    """

    concurrency: int
    speed: float
    throughput: float
    report: dict[str, Any]


def sweep(simulate: Callable[[int], dict[str, Any]], concurrencies: Iterable[int]) -> Iterator[Point]:
    """A point of each simulation in which anybody got two tokens.

    Args:
        simulate: with so many users; gives a `report`.
        concurrencies: how many.
    """
    for users in concurrencies:
        found = simulate(users)
        if found["tokens_per_s_user"]:
            yield Point(users, found["tokens_per_s_user"], found["output_tokens_per_s_device"], found)


def frontier(points: Iterable[Point]) -> list[Point]:
    """Those that no other is at least as good as in both, and better in one; the fastest first.

    Example:
        >>> from miniserve.simulate.pareto import Point, frontier
        >>> points = [Point(1, 100.0, 100.0, {}), Point(2, 60.0, 90.0, {}), Point(4, 50.0, 200.0, {})]
        >>> [point.concurrency for point in frontier(points)]
        [1, 4]
    """
    best, kept = float("-inf"), []
    for point in sorted(points, key=lambda point: (-point.speed, -point.throughput)):
        if point.throughput > best:
            best = point.throughput
            kept.append(point)
    return kept


def parse_concurrencies(text: str) -> list[int]:
    """`1,8,64`: these; `1-256`: from the first on, each twice the one before, and the last.

    Raises:
        InvalidRequestError: it is neither, or too many.
    """
    found: list[int] = []
    if re.fullmatch(r"\d{1,6}(,\d{1,6})*", text, re.ASCII):
        found = sorted({int(part) for part in text.split(",")})
    elif match := re.fullmatch(r"(\d{1,6})-(\d{1,6})", text, re.ASCII):
        low, high = int(match[1]), int(match[2])
        while 1 <= low < high:
            found.append(low)
            low *= 2
        found += [high] if found else []
    if not found or found[0] < 1 or len(found) > MOST_POINTS:
        message = f"sweep '{text}' is neither N,N,… nor LOW-HIGH, of numbers of users, {MOST_POINTS} at most, such as"
        raise InvalidRequestError(f"{message} 1-256")
    return found
