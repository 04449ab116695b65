"""`Generation`: one prompt and its n outputs, on their way through the engine, and the `Delta` that a step adds to one.

Plain state: `TextEngine` makes and changes it, others read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from miniserve.core.request import FinishReason, Request
from miniserve.core.sampling_params import SamplingParams
from miniserve.model.tokenizer.text_stream import TextStream


@dataclass(eq=False)
class Choice:
    """One output of a generation.

    Attributes:
        index: 0 to n - 1.
        request: its tokens, log-probabilities and times.
        stream: its text.
        finish_reason: None while it goes on.
        stop_reason: the stop string, or the id of the caller's stop token, that ended it.
    """

    index: int
    request: Request
    stream: TextStream
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


@dataclass(eq=False)
class Generation:
    """One prompt and its outputs."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    prompt: str | None = None
    choices: list[Choice] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether every output has ended."""
        return all(choice.finish_reason for choice in self.choices)


class Delta(NamedTuple):
    """What a step did for one output: text that may be shown now (may be ""), and the tokens that came."""

    generation: Generation
    choice: Choice
    text: str
    tokens: Sequence[int]
