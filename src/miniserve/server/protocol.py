"""Requests of the OpenAI API, and what they ask of the engine. Those with a conversation are in `chat_protocol`.

Every field is honoured or refused by name: a body with a field that is not here is an error. A null stands for the
default, as in the OpenAI API. Beyond that API stand the engine's further sampling parameters, under the names that
other engines' servers use. Types are strict (strict.py). Ranges are checked by `SamplingParams`.
"""

import re
from abc import ABC, abstractmethod
from typing import Any, Literal

from pydantic import Field, field_validator

from miniserve.core.grammar import Grammar, JsonObject, JsonSchema
from miniserve.core.sampling_params import MAX_LOGIT_BIAS, SamplingParams
from miniserve.errors import InvalidRequestError
from miniserve.server.errors import APIError
from miniserve.server.strict import Listed, Strict

MAX_PROMPTS = 2048  # of one request


class StreamOptions(Strict):
    """Where in a stream the token counts are."""

    include_usage: bool = Field(False, description="A last chunk with the token counts.")
    continuous_usage_stats: bool = Field(False, description="With include_usage: each chunk has the counts so far.")


class NamedSchema(Strict):
    """A JSON schema. It is always followed to the letter, `strict` or not."""

    name: str
    description: str = ""
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool = False


class ResponseFormat(Strict):
    """What form the output has. One that `max_tokens` or a stop string cuts is only the beginning of it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @property
    def grammar(self) -> JsonSchema | JsonObject | None:
        """What the output must be; None: any text.

        Raises:
            APIError: there is no schema where one is needed, or one where none is, or it cannot be used.
        """
        if (self.json_schema is None) == (self.type == "json_schema"):
            needs = "needs" if self.json_schema is None else "is not of type json_schema and has"
            raise APIError(400, f"response_format {needs} a json_schema", param="response_format")
        try:
            if self.json_schema is not None:
                return JsonSchema(self.json_schema.json_schema)
        except InvalidRequestError as error:
            raise APIError(400, str(error), param="response_format", code="invalid_value") from error
        return JsonObject() if self.type == "json_object" else None


class GenerationRequest(Strict, ABC):
    """What both endpoints take."""

    model: str
    max_tokens: int | None = None
    temperature: float = Field(1.0, description="0 takes the likeliest token each time.")
    top_p: float = 1.0
    n: int = 1
    stop: str | Listed[str] = Field(default_factory=list)
    seed: int | None = Field(None, description="The same tokens again, whatever runs beside it.")
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[str, float] = Field(default_factory=dict, description="Token ids to what is added to their logit.")
    stream: bool = False
    stream_options: StreamOptions = StreamOptions(include_usage=False, continuous_usage_stats=False)
    response_format: ResponseFormat = ResponseFormat(type="text")
    user: str | None = Field(None, description="The caller's name for a user; goes to the log.")
    top_k: int = Field(0, description="Draw from the k likeliest tokens; 0: from all.")
    min_p: float = Field(0.0, description="Draw from tokens of this share of the likeliest one's probability.")
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    stop_token_ids: Listed[int] = Field(default_factory=list)
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _few_biases(cls, biases: Any) -> Any:
        if type(biases) is dict and len(biases) > MAX_LOGIT_BIAS:
            raise ValueError(f"it names {len(biases)} tokens: at most {MAX_LOGIT_BIAS}")
        return biases

    @property
    def most_tokens(self) -> int | None:
        """Of output; None: what fits."""
        return self.max_tokens

    @property
    def grammar(self) -> Grammar | None:
        """What the output must be; None: any text. Raises APIError where what is asked cannot be."""
        return self.response_format.grammar

    @property
    def grammar_field(self) -> str:
        """The name of the field that it is from."""
        return "response_format"

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """How many likeliest tokens to report beside each; None: no log-probabilities."""

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether the prompt's log-probabilities are part of the reply."""
        return False

    @property
    def wants_no_output(self) -> bool:
        """Whether the reply is about the prompt alone. The engine makes a token all the same, which is left out."""
        return False

    def params(self) -> SamplingParams:
        """For the engine.

        Raises:
            APIError: a value is out of range; names the field.
        """
        if "stream_options" in self.model_fields_set and not self.stream:
            raise APIError(400, "stream_options is for streams: stream is false", param="stream_options")
        if self.stream_options.continuous_usage_stats and not self.stream_options.include_usage:
            message = "stream_options has continuous_usage_stats, which needs include_usage: true"
            raise APIError(400, message, param="stream_options")
        try:
            return SamplingParams(
                max_tokens=self.most_tokens,
                min_tokens=self.min_tokens,
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                min_p=self.min_p,
                repetition_penalty=self.repetition_penalty,
                presence_penalty=self.presence_penalty,
                frequency_penalty=self.frequency_penalty,
                logit_bias=self._biases(),
                seed=self.seed,
                n=self.n,
                stop=self.stop,
                include_stop_str=self.include_stop_str_in_output,
                stop_token_ids=self.stop_token_ids,
                ignore_eos=self.ignore_eos,
                logprobs=self.num_logprobs,
                prompt_logprobs=self.num_logprobs if self.wants_prompt_logprobs else None,
                skip_special_tokens=self.skip_special_tokens,
                grammar=self.grammar,
            )
        except InvalidRequestError as error:
            raise self.blame(error) from error

    def blame(self, error: InvalidRequestError) -> APIError:
        """The engine's refusal, with the field that its message names."""
        message = str(error)
        words = re.findall(r"\w+", message)
        own = type(self).model_fields.keys() - {"model", self.prompt_field}
        param = self.grammar_field if "grammar" in words else next((word for word in words if word in own), None)
        code = "context_length_exceeded" if "max_model_len" in words else "invalid_value"
        return APIError(400, message, param=param or self.prompt_field, code=code)

    @property
    @abstractmethod
    def prompt_field(self) -> str:
        """The name of the field that holds the prompt."""

    def _biases(self) -> dict[int, float]:
        for token in self.logit_bias:
            if not re.fullmatch(r"\d{1,9}", token, re.ASCII):
                raise APIError(400, f"logit_bias has the key {token!r}: keys are token ids", param="logit_bias")
        return {int(token): bias for token, bias in self.logit_bias.items()}


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`."""

    prompt: str | Listed[str] | Listed[int] | Listed[Listed[int]] = Field(
        description="A text or token ids, or several."
    )
    max_tokens: int | None = Field(16, description="With echo it may be 0: the prompt alone is reported.")
    logprobs: int | None = Field(None, description="So many likeliest tokens for each token.")
    echo: bool = Field(False, description="Put the prompt before the output.")

    @property
    def num_logprobs(self) -> int | None:
        """See the base."""
        return self.logprobs

    @property
    def most_tokens(self) -> int | None:
        """See the base."""
        return 1 if self.wants_no_output else self.max_tokens

    @property
    def wants_prompt_logprobs(self) -> bool:
        """See the base."""
        return self.echo

    @property
    def wants_no_output(self) -> bool:
        """See the base."""
        return self.echo and self.max_tokens == 0

    @property
    def prompt_field(self) -> str:
        """See the base."""
        return "prompt"

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each of them."""
        prompt: Any = self.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return [prompt]
        if not prompt:
            raise APIError(400, "prompt is an empty list: it must hold at least one prompt", param="prompt")
        if len(prompt) > MAX_PROMPTS:
            raise APIError(400, f"prompt has {len(prompt)} prompts: at most {MAX_PROMPTS}", param="prompt")
        return list(prompt)


class DetokenizeRequest(Strict):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: Listed[int]
