"""`Output`: one output on its way through a fleet: all that another engine needs to go on with it."""

from dataclasses import dataclass, field

from miniserve.core.hashing import BlockHash, block_hashes
from miniserve.core.request import FinishReason
from miniserve.core.sampling_params import SamplingParams
from miniserve.server.messages import Piece


@dataclass(eq=False)
class Output:
    """One output.

    Attributes:
        name: by the fleet's number for its request, as `name_of` takes it.
        choice: its index among the request's.
        prompt: token ids.
        params: with `n` of 1, and its own seed.
        cache_salt: of its tenant.
        tokens: what has come.
        num_cached: of the prompt, as the first engine said that computed it: KV that comes from there afterwards was
            computed for this request, and is not counted.
        finish_reason: once it has ended.
    """

    name: str
    choice: int
    prompt: list[int]
    params: SamplingParams
    cache_salt: str
    tokens: list[int] = field(default_factory=list)
    num_cached: int | None = None
    finish_reason: str | None = None

    @property
    def num_tokens(self) -> int:
        """That are known: prompt and output."""
        return len(self.prompt) + len(self.tokens)

    def hashes(self, block_size: int, model_key: str) -> list[BlockHash]:
        """Of the full blocks that could be found rather than computed."""
        known = [*self.prompt, *self.tokens]
        return block_hashes(known[:-1], block_size, model_key, self.cache_salt)

    def take(self, piece: Piece) -> Piece:
        """What an engine sent for it, as its reader is to see it."""
        self.tokens += piece.tokens
        if self.num_cached is None and (piece.tokens or piece.finish_reason):
            self.num_cached = piece.num_cached
        if piece.finish_reason != FinishReason.MOVED.value:
            self.finish_reason = piece.finish_reason
        return piece._replace(
            choice=self.choice, num_cached=self.num_cached or 0, finish_reason=self.finish_reason, offer=None
        )
