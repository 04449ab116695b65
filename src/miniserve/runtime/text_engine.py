"""`TextEngine`: prompts in, text out. The core's engine with a tokenizer around it.

A `Generation` is one prompt and its n outputs; each output is a request of the core and a `TextStream`. This layer
finds stop strings and ends their requests, keeps text and tokens together, and forgets a generation when its last
output has ended, so that nothing of it stays behind whatever ended it. The offline `LLM` stands on it, and so can a
server.
"""

import itertools
from collections.abc import Sequence

from miniserve.core.engine import Engine
from miniserve.core.offer import Offer
from miniserve.core.request import FinishReason, Request
from miniserve.core.sampling_params import SamplingParams
from miniserve.errors import InvalidRequestError
from miniserve.model.tokenizer.text_stream import TextStream
from miniserve.model.tokenizer.tokenizer import Tokenizer
from miniserve.runtime.generation import Choice, Delta, Generation
from miniserve.runtime.grammars import Grammars


class TextEngine:
    """Drives an engine from prompts to text.

    Args:
        engine: the core's.
        tokenizer: the model's.
        model_key: names the model in the identity of KV blocks.

    Attributes:
        model_key: as given.
        grammars: compiles the grammars of requests: `make` does where it has not been done before.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, model_key: str) -> None:
        self.engine, self.tokenizer = engine, tokenizer
        self.model_key = model_key
        self.grammars = Grammars(tokenizer)
        self._generations: dict[str, Generation] = {}
        self._by_request: dict[str, tuple[Generation, Choice]] = {}
        self._names = itertools.count()

    @property
    def has_work(self) -> bool:
        """Whether any output is unfinished."""
        return self.engine.has_work

    def make(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        prompt: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
        prior: Sequence[int] = (),
        offer: Offer | None = None,
    ) -> Generation:
        """A generation that is ready to be added. Nothing is queued yet.

        Args:
            prompt_token_ids: at least one.
            params: how to continue it.
            request_id: unique among the live ones; None: a number.
            prompt: the text, where there is one; only kept.
            priority: smaller goes first.
            cache_salt: prompts share KV blocks only with prompts of the same salt, and so do compiled grammars.
            prior: output that came elsewhere already, if `n` is 1: it goes on behind that, in tokens as in text.
            offer: where the connector may find KV of the first tokens.

        Raises:
            InvalidRequestError: no such token, too long, or a grammar that cannot be used. Names the parameter and the
                limit.
        """
        assert params.n == 1 or not prior, "each output goes on from its own"
        name = request_id if request_id is not None else f"request-{next(self._names)}"
        room = self._room(name, prompt_token_ids, params)
        limits = params.limits(room, self.tokenizer.eos_token_ids)
        generation = Generation(name, list(prompt_token_ids), params, prompt)
        for index in range(params.n):
            request = Request(
                name if params.n == 1 else f"{name}/{index}",
                generation.prompt_token_ids,
                limits,
                params,
                params.seed_of(index),
                priority,
                (self.model_key, cache_salt),
                self.grammars.matcher(params.grammar, limits.stop_token_ids, cache_salt) if params.grammar else None,
                offer,
            )
            self.engine.scheduler.check_fits(request)
            request.resume(prior)
            stream = self._text_stream(generation)
            for token in prior:
                stream.push(token)  # its text was shown where it came
            generation.choices.append(Choice(index, request, stream))
        return generation

    def add(self, generation: Generation) -> Generation:
        """Queue what `make` made.

        Raises:
            InvalidRequestError: its id is in use.
        """
        names = {generation.request_id, *(choice.request.request_id for choice in generation.choices)}
        if taken := names & (self._generations.keys() | self._by_request.keys()):
            raise InvalidRequestError(f"request {min(taken)} is already running: ids must be unique")
        for choice in generation.choices:
            self.engine.add_request(choice.request)
            self._by_request[choice.request.request_id] = generation, choice
        self._generations[generation.request_id] = generation
        return generation

    def step(self) -> list[Delta]:
        """Compute one step of the engine and turn its tokens into text.

        Raises:
            Exception: whatever the executor raised. The outputs of that step have ended with an error by then.
        """
        try:
            outputs = self.engine.step()
        except BaseException:
            for _, choice in list(self._by_request.values()):
                if choice.request.finish_reason is not None:
                    self._end(choice, choice.request.finish_reason)
            raise
        return [self._advance(request, tokens, reason) for request, tokens, reason in outputs]

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT) -> bool:
        """End all outputs of a generation; False if there is none by that name (it may just have finished)."""
        generation = self._generations.get(request_id)
        if generation is None:
            return False
        for choice in generation.choices:
            if choice.finish_reason is None:
                self.engine.finish(choice.request.request_id, reason)
                self._end(choice, reason)
        return True

    def abort_all(self) -> None:
        """End everything."""
        for request_id in list(self._generations):
            self.abort(request_id)

    def _room(self, name: str, prompt_token_ids: Sequence[int], params: SamplingParams) -> int:
        """Check a prompt; how many tokens may follow it. Raises InvalidRequestError: see `make`."""
        longest, vocab_size = self.engine.scheduler.max_model_len, self.tokenizer.vocab_size
        params.check_vocabulary(vocab_size)
        for token in prompt_token_ids:
            if not 0 <= token < vocab_size:
                raise InvalidRequestError(
                    f"{name}: prompt token {token} is outside the vocabulary of {vocab_size} tokens"
                )
        if len(prompt_token_ids) >= longest:
            raise InvalidRequestError(
                f"{name}: the prompt has {len(prompt_token_ids)} tokens and leaves no room for output; "
                f"max_model_len is {longest}"
            )
        return longest - len(prompt_token_ids)

    def _text_stream(self, generation: Generation) -> TextStream:
        params = generation.params
        return TextStream(
            self.tokenizer,
            prompt_ids=generation.prompt_token_ids,
            stop=params.stop,
            include_stop_str=params.include_stop_str,
            skip_special_tokens=params.skip_special_tokens,
            min_tokens=params.min_tokens,
        )

    def _advance(self, request: Request, tokens: Sequence[int], reason: FinishReason | None) -> Delta:
        """Turn an output's new tokens into text, up to the stop string or stop token that ends it."""
        generation, choice = self._by_request[request.request_id]
        params, stream, text = generation.params, choice.stream, ""
        said = request.num_output_tokens - len(tokens)
        stopped = tokens and reason is FinishReason.STOP and tokens[-1] in request.limits.stop_token_ids
        stop_token = tokens[-1] if stopped else None
        shown = tokens if stop_token is None or params.include_stop_str else tokens[:-1]
        for count, token in enumerate(shown, 1):
            text += stream.push(token)
            if stream.stop_reason is not None:
                tokens = tokens[:count]
                self.engine.finish(request.request_id, FinishReason.STOP)
                request.cut(said + count)
                reason = FinishReason.STOP
                break
        else:
            if stop_token in params.stop_token_ids:
                choice.stop_reason = stop_token
        if reason is not None:
            text += self._end(choice, reason)
        return Delta(generation, choice, text, tokens)

    def _end(self, choice: Choice, reason: FinishReason) -> str:
        """An output has ended; returns the text that was still held back."""
        generation, _ = self._by_request.pop(choice.request.request_id)
        text = choice.stream.finish()
        choice.finish_reason = reason
        if choice.stream.stop_reason is not None:  # known only now if the last character was incomplete
            choice.stop_reason, choice.finish_reason = choice.stream.stop_reason, FinishReason.STOP
        if generation.finished:
            del self._generations[generation.request_id]
        return text
