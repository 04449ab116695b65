"""`Disaggregation`: whether a request's prompt is computed by another engine than the one that decodes it.

Apart, a long prompt delays nobody's next token, but its KV has to move, and an engine that could compute it may stand
idle. So only what would hold decodes up goes elsewhere: a step's time grows with the tokens that are computed in it,
not with those that are cached. Pure: real fleets and simulated ones use the same.
"""

from dataclasses import dataclass

from miniserve.core.sampling_params import SamplingParams
from miniserve.errors import InvalidRequestError

MIN_TOKENS = 128


@dataclass(frozen=True)
class Disaggregation:
    """The rule.

    Args:
        min_tokens: of a prompt, not cached where it will be decoded, from which on it is computed apart.
    """

    min_tokens: int = MIN_TOKENS

    def __post_init__(self) -> None:
        if self.min_tokens < 0:
            raise InvalidRequestError(f"min_tokens is {self.min_tokens}: it must be at least 0")

    def is_apart(self, num_tokens: int, num_cached: int, params: SamplingParams) -> bool:
        """Whether the first `num_tokens` of a request are computed apart.

        Never if log-probabilities of the prompt are wanted: they need every position's logits, where it is decoded and
        with no KV from elsewhere. Nor if one token is all that is wanted: nothing is left to decode.

        Args:
            num_tokens: that are known.
            num_cached: of those, the ones whose KV the engine that will decode has.
            params: what is asked of it.
        """
        if params.prompt_logprobs is not None or params.max_tokens == 1:
            return False
        return num_tokens - num_cached >= max(self.min_tokens, 1)
