"""`SamplingParams`: everything a caller may ask about how one prompt is continued.

Checked when it is made: a value out of range is refused with its name and the limit, so that no later code meets one.
Frozen and torch-free; it can be shared by requests and sent to another process. Two parts of the engine read it:
`Limits` (when a request ends, the scheduler's business) is derived from it, and the sampler reads the rest.
"""

import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from miniserve.core.grammar import Grammar
from miniserve.errors import InvalidRequestError

MAX_N = 128
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1000
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGIT_BIAS = 1024
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Limits:
    """When a request's output ends.

    Args:
        max_tokens: most output tokens.
        min_tokens: before so many output tokens, no stop token ends it.
        stop_token_ids: tokens that end it: EOS and what the caller adds. They are part of the output.

    Example:
        >>> from miniserve.core.sampling_params import Limits
        >>> Limits(max_tokens=100, stop_token_ids=frozenset({2}))
        Limits(max_tokens=100, min_tokens=0, stop_token_ids=frozenset({2}))
    """

    max_tokens: int
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InvalidRequestError(f"max_tokens is {self.max_tokens}: it must be at least 1")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens is {self.min_tokens}: it must lie between 0 and max_tokens ({self.max_tokens})"
            )


@dataclass(frozen=True)
class SamplingParams:
    """How to continue a prompt.

    The order in which a token is chosen: `logit_bias`, penalties, `grammar`, `min_tokens`; then at temperature 0 the
    largest logit; otherwise temperature, `top_k`, `top_p`, `min_p`, and a draw from what is left.

    Args:
        max_tokens: most output tokens; None: as many as the model's length has room for.
        min_tokens: until so many have come, no stop token can be chosen and no stop string ends the text.
        temperature: 0 takes the likeliest token each time; up to 100.
        top_k: draw from the k likeliest tokens; 0: from all.
        top_p: draw from the likeliest tokens that together hold this probability, the one that crosses it included.
        min_p: draw only from tokens with at least this share of the likeliest one's probability.
        repetition_penalty: logits of tokens in prompt or output are divided by it if positive, else multiplied; 1: off.
        presence_penalty: taken off the logit of every token in the output; -2 to 2.
        frequency_penalty: taken off for each time it is there; -2 to 2.
        logit_bias: token id to a number added to its logit, -100 to 100.
        seed: the same seed, prompt and model draw the same tokens, whatever runs beside them. None: a fresh one.
        n: how many independent outputs.
        stop: a string, or several, that end the text; the text is cut before the first of them.
        include_stop_str: cut behind the stop string instead.
        stop_token_ids: tokens that end the output, besides the model's EOS. They are part of the output.
        ignore_eos: go on after EOS, as benchmarks do.
        logprobs: report each output token's log-probability and those of so many likeliest ones; None: off.
        prompt_logprobs: the same for the prompt's tokens, from the second on.
        skip_special_tokens: leave control tokens out of the text.
        grammar: what the text must be. EOS can come only where it may end; where nothing can follow, the output ends,
            before `min_tokens` too. An output that `max_tokens` or a stop string cuts is only its beginning.

    Log-probabilities are the model's own: of the unmodified logits at temperature 1, with a grammar too.

    Raises:
        InvalidRequestError: out of range; names the parameter and the limit.

    Example:
        >>> from miniserve import SamplingParams
        >>> params = SamplingParams(max_tokens=64, temperature=0.8, top_p=0.95, stop=["ROMEO.", "JULIET."], seed=1)
        >>> SamplingParams(temperature=-1)
        Traceback (most recent call last):
            ...
        miniserve.errors.InvalidRequestError: temperature is -1: it must lie between 0 and 100
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    n: int = 1
    stop: str | Sequence[str] = ()
    include_stop_str: bool = False
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        # Lists and a single string are what callers write; what is kept is immutable.
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "logit_bias", MappingProxyType(dict(self.logit_bias)))
        _whole("max_tokens", self.max_tokens, 1, None)
        _whole("min_tokens", self.min_tokens, 0, None)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(f"min_tokens ({self.min_tokens}) exceeds max_tokens ({self.max_tokens})")
        _number("temperature", self.temperature, 0, 100)
        _whole("top_k", self.top_k, 0, None)
        _number("top_p", self.top_p, 0, 1)
        if self.top_p == 0:
            raise InvalidRequestError("top_p is 0: it must be above 0; temperature 0 takes the likeliest token")
        _number("min_p", self.min_p, 0, 1)
        _number("repetition_penalty", self.repetition_penalty, 0, 100)
        if self.repetition_penalty == 0:
            raise InvalidRequestError("repetition_penalty is 0: it must be above 0; 1 is off")
        _number("presence_penalty", self.presence_penalty, -2, 2)
        _number("frequency_penalty", self.frequency_penalty, -2, 2)
        _whole("seed", self.seed, 0, MAX_SEED)
        _whole("n", self.n, 1, MAX_N)
        _whole("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        _whole("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS)
        self._check_collections()

    def _check_collections(self) -> None:
        if not isinstance(self.grammar, Grammar | None):
            raise InvalidRequestError(
                f"grammar is {self.grammar!r:.80}: it must be a JsonSchema, JsonObject, Regex, Choices or ToolCalls"
            )
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequestError(f"stop has {len(self.stop)} strings: at most {MAX_STOP_STRINGS} are allowed")
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise InvalidRequestError(f"stop holds {text!r}: every stop string needs at least one character")
            if len(text) > MAX_STOP_LENGTH:
                raise InvalidRequestError(f"a stop string has {len(text)} characters: at most {MAX_STOP_LENGTH}")
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise InvalidRequestError(
                f"stop_token_ids has {len(self.stop_token_ids)} tokens: at most {MAX_STOP_TOKEN_IDS} are allowed"
            )
        for token in self.stop_token_ids:
            _whole("a stop_token_id", token, 0, None)
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise InvalidRequestError(f"logit_bias names {len(self.logit_bias)} tokens: at most {MAX_LOGIT_BIAS}")
        for token, bias in self.logit_bias.items():
            _whole("a token id of logit_bias", token, 0, None)
            _number(f"logit_bias[{token}]", bias, -100, 100)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        """Pickle by value: a read-only view of a dict cannot be pickled itself."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return SamplingParams, tuple((values | {"logit_bias": dict(self.logit_bias)}).values())

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise InvalidRequestError if a token id named here does not exist."""
        for name, tokens in (("stop_token_ids", self.stop_token_ids), ("logit_bias", self.logit_bias)):
            for token in tokens:
                if token >= vocab_size:
                    raise InvalidRequestError(f"{name} names token {token}; the vocabulary has {vocab_size} tokens")

    def limits(self, room: int, eos_token_ids: Iterable[int]) -> Limits:
        """What the scheduler is told.

        Args:
            room: tokens that fit behind the prompt, at least 1: `max_tokens` where none is given.
            eos_token_ids: the model's.
        """
        eos = () if self.ignore_eos else eos_token_ids
        max_tokens = self.max_tokens if self.max_tokens is not None else room
        return Limits(max_tokens, self.min_tokens, frozenset((*eos, *self.stop_token_ids)))

    def seed_of(self, choice: int) -> int:
        """The seed of output `choice` of `n`: each draws its own numbers, and the first those of n = 1."""
        if self.seed is None:
            return secrets.randbits(63)
        return (self.seed + choice * 0x5851F42D4C957F2D) % 2**63


def _whole(name: str, value: object, low: int, high: int | None) -> None:
    if value is None and name in ("max_tokens", "seed", "logprobs", "prompt_logprobs"):
        return
    bounds = f"a whole number of at least {low}" if high is None else f"a whole number between {low} and {high}"
    if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
        raise InvalidRequestError(f"{name} is {value!r}: it must be {bounds}")


def _number(name: str, value: object, low: float, high: float) -> None:
    numeric = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not numeric or not low <= value <= high:  # type: ignore[operator]
        raise InvalidRequestError(f"{name} is {value!r}: it must lie between {low} and {high}")


GREEDY = SamplingParams()
