"""`Executor`: the seam between the core and everything that costs time.

Whatever computes a step (a model on a CPU, on a GPU, or a cost model under a virtual clock) is one of these. The core
hands it a `Step` and gets tokens back; it knows nothing of tensors, and the executor nothing of queues.
"""

from collections.abc import Sequence
from typing import Protocol

from miniserve.core.scheduler import Step


class Executor(Protocol):
    """Computes steps, in the order given."""

    def execute(self, step: Step) -> Sequence[int | None]:
        """Compute the scheduled tokens and write their KV into the requests' blocks.

        Returns:
            For each of `step.scheduled` in order: the sampled token if it `samples`, else None.
        """
        ...
