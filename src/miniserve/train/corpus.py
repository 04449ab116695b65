"""`Corpus`: a text as token ids, and the batches that are cut from it.

A batch is a function of the seed and the step's number alone. So a run that goes on after an interruption sees what it
would have seen, and so do several processes that each take their rows of it. The end of the text is held out: its
windows are never trained on.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from miniserve.errors import InvalidRequestError

Ids = npt.NDArray[np.int32]


class Corpus:
    """Token ids of one text.

    Args:
        ids: all of them.
        length: tokens of a sequence; a window has one more, the last one's successor.
        held_out: share of the text, from its end.

    Raises:
        InvalidRequestError: a part of the text is shorter than one window.
    """

    def __init__(self, ids: Sequence[int] | Ids, length: int, held_out: float = 0.05) -> None:
        every = np.asarray(ids, np.int32)
        if length < 1 or not 0 < held_out < 1:
            message = f"sequences of {length} tokens, 1 at least; {held_out} of the text held out, between 0 and 1"
            raise InvalidRequestError(message)
        cut = round(len(every) * (1 - held_out))
        self.train, self.held_out, self.length = every[:cut], every[cut:], length
        for name, part in (("to train on", self.train), ("held out", self.held_out)):
            if len(part) <= length:
                raise InvalidRequestError(
                    f"the text {name} has {len(part):,} tokens: a window of it takes {length + 1:,}"
                )

    def batch(self, seed: int, step: int, rows: int) -> tuple[Tensor, Tensor]:
        """Windows from anywhere: [rows, length] int64, and each token's successor."""
        generator = np.random.default_rng((seed, step))
        starts = generator.integers(0, len(self.train) - self.length, rows)
        return self._cut(self.train, starts)

    def held_out_batches(self, rows: int, most: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Windows that do not overlap, from the first on: at most so many of up to `rows`."""
        starts = np.arange(0, len(self.held_out) - self.length, self.length)
        for first in range(0, min(len(starts), rows * most), rows):
            yield self._cut(self.held_out, starts[first : first + rows])

    def _cut(self, ids: Ids, starts: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        windows = torch.from_numpy(ids[starts[:, None] + np.arange(self.length + 1)].astype(np.int64))
        return windows[:, :-1], windows[:, 1:]
