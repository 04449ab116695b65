"""What a frontend of Dynamo's has seen come in an interval, from its metrics: the load that a planner plans for.

Torch-free, and without Dynamo: the metrics are Prometheus' text. Prompts and outputs are counted when Dynamo counts
them, which is when a request ends; what has begun and not ended is in the gauges.
"""

from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from miniserve.core.scaling import Observed

PREFIX = "dynamo_frontend_"


class Sums(NamedTuple):
    """Of a frontend since it began, all models together; the last two are of now."""

    prompts: float = 0.0
    prompt_tokens: float = 0.0
    cached_tokens: float = 0.0
    outputs: float = 0.0
    output_tokens: float = 0.0
    queued: float = 0.0
    active: float = 0.0

    @classmethod
    def of(cls, text: str) -> "Sums":
        """From the page of metrics; what is not there is 0."""
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = sample.name.removeprefix(PREFIX)
                found[name] = found.get(name, 0.0) + sample.value
        names = (
            "input_sequence_tokens_count", "input_sequence_tokens_sum", "cached_tokens_sum",
            "output_sequence_tokens_count", "output_sequence_tokens_sum", "queued_requests", "inflight_requests",
        )  # fmt: skip
        return cls(*(found.get(name, 0.0) for name in names))


class Traffic:
    """Reads one frontend, again and again."""

    def __init__(self) -> None:
        self._before: Sums | None = None
        self._prompt = self._output = 0.0

    def read(self, text: str, seconds: float) -> Observed | None:
        """What came since the last call, so many seconds ago; None for the first, and after the frontend began anew."""
        now, before = Sums.of(text), self._before
        self._before = now
        if before is None or any(now[at] < before[at] for at in range(5)):
            return None
        prompts, prompt_tokens, cached, outputs, output_tokens = (now[at] - before[at] for at in range(5))
        self._prompt = prompt_tokens / prompts if prompts else self._prompt
        self._output = output_tokens / outputs if outputs else self._output
        queued = min(now.queued, now.active)
        return Observed(
            seconds, round(prompts), round(prompt_tokens), round(prompt_tokens - min(cached, prompt_tokens)),
            queued * self._prompt, round(now.active - queued), self._output,
        )  # fmt: skip
