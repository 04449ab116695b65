"""`Notes`: what everybody in a soak writes down, so that errors can be told from those that were to be expected."""

import math
import time
from collections import Counter

EXPLAINED_S = 90.0  # after a kill, while its engine may not be there, errors are what is to be expected


class Notes:
    """Of one soak.

    Attributes:
        counts: what was done, and what came of it, in words.
        wrong: everything that must not be.
        by_minute: right answers in each minute since `begin`.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.by_minute: Counter[int] = Counter()
        self._began, self._killed_s = time.monotonic(), -math.inf

    def begin(self) -> None:
        """The clock of minutes starts."""
        self._began = time.monotonic()

    @property
    def at_s(self) -> float:
        """Since then."""
        return time.monotonic() - self._began

    def right(self) -> None:
        """An answer came, and it was the one."""
        self.counts["right answers"] += 1
        self.by_minute[int(self.at_s // 60)] += 1

    def killed(self) -> None:
        """An engine is about to be."""
        self._killed_s = time.monotonic()
        self.counts["kill -9 of an engine"] += 1

    def told(self, what: str, words: str) -> None:
        """An error that somebody was told; one is due only where an engine has died."""
        self.counts[what] += 1
        if time.monotonic() - self._killed_s >= EXPLAINED_S:
            self.wrong.append(f"{what}: {words}")
