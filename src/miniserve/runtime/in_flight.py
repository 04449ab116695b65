"""`Chosen`: a step that the device computes, or has computed, while the host goes on."""

from collections.abc import Sequence

import torch
from torch import Tensor

from miniserve.core.executor import StepResult
from miniserve.runtime.ahead import Position
from miniserve.runtime.sampler import checked


class Chosen:
    """The tokens of a step on their way to the host.

    Args:
        tokens: [R] int64 of `sampler.choose`; may be overwritten by what is launched later.
        places: R of them, where each was chosen.
        samples: of each part of the step, whether one of the tokens is its own, in order.
    """

    may_be_followed = True

    def __init__(self, tokens: Tensor, places: Sequence[Position], samples: Sequence[bool]) -> None:
        self._places, self._samples = places, samples
        on_gpu = tokens.device.type == "cuda"
        self._host = torch.empty(tokens.shape, dtype=torch.int64, pin_memory=on_gpu)
        self._host.copy_(tokens, non_blocking=True)
        self._copied = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]
        if self._copied:
            self._copied.record()

    def result(self) -> StepResult:
        """Wait for the tokens.

        Raises:
            RuntimeError: a request's logits were unsound.
        """
        if self._copied:
            self._copied.synchronize()
        tokens = iter(checked(self._host.tolist(), self._places))
        return StepResult([(next(tokens),) if samples else () for samples in self._samples])
