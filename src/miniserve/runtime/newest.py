"""`Newest`: the tokens chosen last, on the device, for a step that is launched before the host knows them.

Such a pending token is written among a step's inputs as -1 - r: what row r of the step before chose. `fill_in` puts the
token in its place, on the device, in whose order it comes after that step.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from miniserve.core.request import Request


class Newest:
    """Room for the tokens of one step.

    Args:
        max_num_seqs: most requests of a step.
        device: where they live.
    """

    def __init__(self, max_num_seqs: int, device: torch.device) -> None:
        self._tokens = torch.zeros(max_num_seqs, dtype=torch.int64, device=device)
        self._rows: dict[Request, int] = {}

    def keep(self, requests: Sequence[Request], tokens: Tensor) -> None:
        """The device chose, or is going to choose, tokens [R] int64 for these requests. -1 is a failure: any token."""
        self._rows = {request: row for row, request in enumerate(requests)}
        torch.clamp(tokens, min=0, out=self._tokens[: len(requests)])

    def stand_in(self, request: Request) -> int:
        """What to write in place of the request's pending token."""
        return -1 - self._rows[request]

    def fill_in(self, token_ids: Tensor) -> Tensor:
        """[T] int64, with every stand-in replaced by its token. Always the same operations, as a graph needs them."""
        rows = (-1 - token_ids).clamp_(min=0)
        return torch.where(token_ids < 0, self._tokens[rows], token_ids)
