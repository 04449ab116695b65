"""`Completion`: one reply in the making. Iterate over it for pieces of text; its fields grow as it does.

It ties generation to text: limits checked before any work, EOS recognised and kept out of the text, characters never
cut in half, every token's moment noted. Leaving the loop early, by `break` or Ctrl-C, leaves a consistent object
whose `finish_reason` is "abort".
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from miniserve.errors import InvalidRequestError
from miniserve.model.generate import generate_cached, make_sampler
from miniserve.model.load import LoadedModel


class Completion:
    """A reply to one prompt.

    Args:
        model: what replies.
        prompt_ids: at least one token.
        max_tokens: most tokens to generate; None: as many as the context has room for.
        temperature: see `make_sampler`.
        seed: see `make_sampler`.

    Attributes:
        text: all text so far.
        token_ids: generated so far, an EOS token included.
        finish_reason: "stop" (the model ended), "length" (`max_tokens`), or "abort" until one of these.

    Raises:
        InvalidRequestError: an empty prompt, or lengths that exceed the model's context.
    """

    def __init__(
        self,
        model: LoadedModel,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> None:
        limit = model.config.max_position_embeddings
        room = limit - len(prompt_ids)
        if not prompt_ids:
            raise InvalidRequestError("the prompt is empty: it has no tokens")
        if room < 1:
            raise InvalidRequestError(f"the prompt has {len(prompt_ids)} tokens; the model's context holds {limit}")
        if max_tokens is not None and not 1 <= max_tokens <= room:
            raise InvalidRequestError(
                f"max_tokens is {max_tokens}: with a prompt of {len(prompt_ids)} tokens and a context of {limit} "
                f"it must lie between 1 and {room}"
            )
        self._model = model
        self._max_tokens = room if max_tokens is None else max_tokens
        self._sample = make_sampler(temperature, seed)
        self._started = 0.0
        self._moments: list[float] = []
        self.prompt_token_ids = list(prompt_ids)
        self.token_ids: list[int] = []
        self.text = ""
        self.finish_reason = "abort"

    def __iter__(self) -> Iterator[str]:
        """Generate. Yields non-empty pieces of text; a piece never ends inside a character."""
        tokenizer = self._model.tokenizer
        detokenizer = tokenizer.detokenizer(prompt_ids=self.prompt_token_ids)
        stop_ids = tokenizer.eos_token_ids
        self._started = time.perf_counter()
        for token in generate_cached(
            self._model.decoder, self.prompt_token_ids, self._max_tokens, stop_ids=stop_ids, sample=self._sample
        ):
            self._moments.append(time.perf_counter())
            self.token_ids.append(token)
            if token in stop_ids:
                self.finish_reason = "stop"
                break
            if piece := detokenizer.push(token):
                self.text += piece
                yield piece
        else:
            self.finish_reason = "length"
        if piece := detokenizer.finish():
            self.text += piece
            yield piece

    @property
    def usage(self) -> dict[str, int]:
        """Token counts under the names of the OpenAI API."""
        prompt, completion = len(self.prompt_token_ids), len(self.token_ids)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    @property
    def timings(self) -> dict[str, float | None]:
        """Seconds and rates; None where there were too few tokens to measure.

        `ttft_s`: from the start to the first token. `itl_s`: mean time between tokens after that.
        `tokens_per_s`: generated tokens over the whole time, prefill included.
        """
        moments = self._moments
        if not moments:
            return {"ttft_s": None, "itl_s": None, "tokens_per_s": None}
        gaps = len(moments) - 1
        return {
            "ttft_s": moments[0] - self._started,
            "itl_s": (moments[-1] - moments[0]) / gaps if gaps else None,
            "tokens_per_s": len(moments) / (moments[-1] - self._started),
        }

    def as_dict(self) -> dict[str, Any]:
        """What `miniserve generate --json` prints."""
        return {
            "text": self.text,
            "prompt_token_ids": self.prompt_token_ids,
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason,
            "usage": self.usage,
            "timings": self.timings,
        }
