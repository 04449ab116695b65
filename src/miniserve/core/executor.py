"""`Executor`: the seam between the core and everything that costs time.

Whatever computes a step (a model on a CPU, on a GPU, or a cost model under a virtual clock) is one of these. The core
hands it a `Step` and gets tokens back; it knows nothing of tensors, and the executor nothing of queues.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from miniserve.core.request import Request, TokenLogprob


class Scheduled(NamedTuple):
    """One request's part of a step: tokens [start, start + num_tokens) are computed.

    The last of them may be a draft: guesses of what follows the request's known tokens (see proposer.py).
    """

    request: Request
    start: int
    num_tokens: int
    draft: Sequence[int] = ()

    @property
    def num_known(self) -> int:
        """How many of its tokens are no guesses."""
        return self.num_tokens - len(self.draft)

    @property
    def samples(self) -> bool:
        """Whether all known tokens are computed afterwards, so that the last one's logits give a new token.

        True until the new token is taken; so is `is_pending` until the token is known.
        """
        return self.start + self.num_known >= len(self.request.token_ids)

    @property
    def is_pending(self) -> bool:
        """Whether its last token is what the step in flight chooses for the request: known on the device alone."""
        return self.start + self.num_known > len(self.request.token_ids)

    @property
    def token_ids(self) -> list[int]:
        """The tokens that are computed, but for the one that is pending."""
        known = self.request.token_ids[self.start : self.start + self.num_known]
        return [*known, *self.draft] if self.draft else known


@dataclass
class Step:
    """What one step computes. `preempted` lost their blocks while it was put together."""

    scheduled: list[Scheduled] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Tokens the step computes, all requests together."""
        return sum(part.num_tokens for part in self.scheduled)


@dataclass
class StepResult:
    """What came of a step.

    Attributes:
        tokens: for each of `step.scheduled` in order, the tokens that follow its known ones: none unless it `samples`;
            else those of its draft that the model chooses too, up to the first where it does not, and there its choice.
        logprobs: by index into `step.scheduled`, those of its tokens, where the request asked for them.
        prompt_logprobs: by index into `step.scheduled`, those of the prompt tokens that follow the computed ones.
        seconds: where the time went, by name ("prepare", "forward", "sample"), if the executor measured it.
    """

    tokens: Sequence[Sequence[int]]
    logprobs: Mapping[int, Sequence[TokenLogprob]] = field(default_factory=dict)
    prompt_logprobs: Mapping[int, Sequence[TokenLogprob]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


class InFlight(Protocol):
    """A step that was launched."""

    @property
    def may_be_followed(self) -> bool:
        """Whether the next step may be launched before the result is known, the same for good.

        Then the next step's parts may be pending, and the executor finds their tokens itself. Where choosing the next
        token needs the newest one on the host, as penalties do, the answer is no.
        """
        ...

    def result(self) -> StepResult:
        """Wait for the step. Called once; results are asked for in the order of the launches."""
        ...


@dataclass(frozen=True)
class Computed:
    """A step that was computed when it was launched."""

    outcome: StepResult
    may_be_followed: bool = field(default=False, init=False)

    def result(self) -> StepResult:
        """What came of it."""
        return self.outcome


class Executor(Protocol):
    """Computes steps, in the order given."""

    def launch(self, step: Step) -> InFlight:
        """Begin to compute the scheduled tokens, write their KV into the requests' blocks, and sample.

        What it needs of step and requests it reads now: they change before the result is asked for.
        """
        ...
