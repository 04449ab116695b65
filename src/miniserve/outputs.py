"""What `LLM` gives back: one `RequestOutput` a prompt, with one `CompletionOutput` for each of its n outputs.

Snapshots: plain values taken from a generation, finished or not, or from the scheduler (`BlockView`). They stay what
they are while the engine goes on.
"""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from miniserve.core.request import FinishReason, TokenLogprob
from miniserve.core.scheduler import Scheduler
from miniserve.runtime.generation import Choice, Generation


@dataclass(frozen=True)
class Timings:
    """Seconds and rates of one output; None where there were too few tokens to measure.

    Attributes:
        queue_s: from arrival to the first step that computed part of it.
        ttft_s: from arrival to the first token.
        itl_s: mean time between the tokens after that.
        e2e_s: from arrival to the end.
        tokens_per_s: output tokens over the time from arrival to the last of them.
    """

    queue_s: float | None
    ttft_s: float | None
    itl_s: float | None
    e2e_s: float | None
    tokens_per_s: float | None


@dataclass(frozen=True)
class CompletionOutput:
    """One output.

    Attributes:
        index: 0 to n - 1.
        text: what it says, without what is held back because it may begin a stop string.
        token_ids: generated, the one that stopped it included.
        logprobs: one entry a token, if asked for.
        finish_reason: "stop", "length", "abort", "error"; None while it goes on.
        stop_reason: the stop string or the caller's stop token id that ended it.
        num_cached_tokens: prompt tokens that were not computed anew: their KV was in the prefix cache, or in a tier.
        num_preemptions: how often it lost its place.
        timings: see `Timings`.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None
    finish_reason: str | None
    stop_reason: str | int | None
    num_cached_tokens: int
    num_preemptions: int
    timings: Timings


@dataclass(frozen=True)
class RequestOutput:
    """One prompt and what came of it. `text`, `token_ids`, `finish_reason` and `timings` are the first output's.

    Attributes:
        prompt: the text, if the prompt was one.
        prompt_logprobs: one entry a prompt token, None for the first; if asked for.

    Example:
        >>> from miniserve import LLM, SamplingParams
        >>> with LLM("tiny-moe", dtype="float32") as llm:
        ...     params = SamplingParams(max_tokens=8, n=2, temperature=0.8, seed=1, logprobs=3)
        ...     (output,) = llm.generate("ROMEO.", params)
        >>> output.finish_reason, output.usage
        ('length', {'prompt_tokens': 5, 'completion_tokens': 16, 'total_tokens': 21, 'cached_tokens': 0})
        >>> first, second = output.outputs
        >>> first.text != second.text, len(second.token_ids), len(second.logprobs[0].top)
        (True, 8, 3)
        >>> 0 < output.timings.ttft_s < output.timings.e2e_s
        True
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[TokenLogprob | None] | None
    outputs: list[CompletionOutput]
    finished: bool

    @property
    def text(self) -> str:
        """The first output's."""
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        """The first output's."""
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> str | None:
        """The first output's."""
        return self.outputs[0].finish_reason

    @property
    def timings(self) -> Timings:
        """The first output's."""
        return self.outputs[0].timings

    @property
    def usage(self) -> dict[str, int]:
        """Token counts under the names of the OpenAI API, and how many of the prompt's were found in the cache."""
        prompt, completion = len(self.prompt_token_ids), sum(len(output.token_ids) for output in self.outputs)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "cached_tokens": self.outputs[0].num_cached_tokens,
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return asdict(self) | {"usage": self.usage}


class BlockView(NamedTuple):
    """One KV block: which requests hold it, and whether its content can be found by others."""

    block: int
    holders: tuple[str, ...]
    cached: bool


def snapshot(generation: Generation) -> RequestOutput:
    """The generation as it is now."""
    params = generation.params
    first = generation.choices[0].request
    return RequestOutput(
        generation.request_id,
        generation.prompt,
        list(generation.prompt_token_ids),
        list(first.prompt_logprobs) if params.prompt_logprobs is not None else None,
        [_completion(choice, params.logprobs is not None) for choice in generation.choices],
        generation.finished,
    )


def block_views(scheduler: Scheduler) -> list[BlockView]:
    """Every KV block of the pool, in order."""
    holders: dict[int, list[str]] = {}
    for request in (*scheduler.running, *scheduler.loading):
        for block in request.block_table:
            holders.setdefault(block, []).append(request.request_id)
    pool = scheduler.pool
    return [BlockView(b, tuple(holders.get(b, ())), pool.is_cached(b)) for b in range(pool.num_blocks)]


def _completion(choice: Choice, with_logprobs: bool) -> CompletionOutput:
    request, times = choice.request, choice.request.times
    gaps = len(times.tokens_s) - 1
    span = times.tokens_s[-1] - times.queued_s if times.tokens_s else 0.0
    reason: FinishReason | None = choice.finish_reason
    return CompletionOutput(
        index=choice.index,
        text=choice.stream.text,
        token_ids=request.output_token_ids,
        logprobs=list(request.logprobs) if with_logprobs else None,
        finish_reason=reason.value if reason else None,
        stop_reason=choice.stop_reason,
        num_cached_tokens=request.num_reused,
        num_preemptions=request.num_preemptions,
        timings=Timings(
            queue_s=times.queue_s,
            ttft_s=times.ttft_s,
            itl_s=(times.tokens_s[-1] - times.tokens_s[0]) / gaps if gaps > 0 else None,
            e2e_s=times.finished_s - times.queued_s if times.finished_s is not None else None,
            tokens_per_s=len(times.tokens_s) / span if span else None,
        ),
    )
