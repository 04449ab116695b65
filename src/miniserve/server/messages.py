"""What crosses between the server's process and the engine's: small tuples, pickled by a `multiprocessing` pipe.

The pipe is a pair of sockets between two processes of one user that no third can open, so pickles are safe on it. The
server numbers its submissions; the engine answers each with `Accepted` or `Refused`, then with pieces until every
choice has a finish reason. All pieces of a step travel in one message, so that a step costs one write.
"""

from collections.abc import Sequence
from typing import NamedTuple

from miniserve.core.block_pool import BlockEvent
from miniserve.core.kv_counts import MoveCounts
from miniserve.core.metrics import Metrics
from miniserve.core.offer import Offer
from miniserve.core.request import TokenLogprob
from miniserve.core.sampling_params import SamplingParams
from miniserve.model.tokenizer.tokenizer import Tokenizer
from miniserve.server.view.records import Update


class Submit(NamedTuple):
    """Continue these prompts, all of them or none.

    Attributes:
        key: the server's number for it.
        prompts: token ids.
        params: for each of the prompts.
        cache_salt: prompts share KV blocks, and compiled grammars, only within one salt.
        moves: after its first token it goes on in another engine; for one prompt with one choice.
        prior: output that has come elsewhere already; for one prompt with one choice.
        offer: where KV of its first tokens is.
        name: what those who watch see of it, where that is not its key: "7.0/1", as `name_of` takes it.
    """

    key: int
    prompts: list[list[int]]
    params: SamplingParams
    cache_salt: str
    moves: bool = False
    prior: Sequence[int] = ()
    offer: Offer | None = None
    name: str = ""


class Abort(NamedTuple):
    """End all choices of a submission; nothing more is to be sent for it, and what it left to be fetched may go.

    `key` and `name` are those of `Submit`.
    """

    key: int
    name: str = ""


class DeleteKV(NamedTuple):
    """Forget a tenant's KV, wherever it is. `key` is the server's number for it; the answer is `Deleted`."""

    key: int
    cache_salt: str


class Ask(NamedTuple):
    """Send a `Report`."""


class Watch(NamedTuple):
    """Send an `Update` now and then, or no more."""

    on: bool


class Facts(NamedTuple):
    """What the server needs to know of an engine: its limits, what names its KV blocks, and a line for people."""

    description: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_blocks: int
    block_size: int
    prefix_caching: bool = True
    model_key: str = ""


class Ready(NamedTuple):
    """The model is loaded."""

    facts: Facts
    tokenizer: Tokenizer


class Failed(NamedTuple):
    """It could not be loaded. `exit_code` is the error's."""

    message: str
    exit_code: int


class Accepted(NamedTuple):
    """A submission is queued."""

    key: int


class Refused(NamedTuple):
    """A submission was out of range; nothing of it is queued."""

    key: int
    message: str


class Deleted(NamedTuple):
    """A tenant's KV is gone: how many blocks there were, by place. With an error, some may still be there."""

    key: int
    blocks: dict[str, int]
    error: str = ""


class Piece(NamedTuple):
    """What came for one choice since the last piece.

    Attributes:
        choice: its index: those of the first prompt, 0 to n - 1, then those of the second.
        text: may be "" while a stop string or a character is incomplete.
        tokens: ids.
        logprobs: one a token, if asked for.
        finish_reason, stop_reason: see `outputs.CompletionOutput`. "moved": it goes on behind its tokens in another
            engine, which may find its KV by `offer`.
        num_cached: tokens of the prompt that were not computed anew: the prefix cache had them, or a tier.
        prompt_logprobs: with the first piece, if asked for: one a prompt token, None for the first.
        spent_s: its share of the engine's time since the last piece; see `Times`.
    """

    choice: int
    text: str
    tokens: list[int]
    logprobs: list[TokenLogprob] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    num_cached: int = 0
    prompt_logprobs: list[TokenLogprob | None] | None = None
    offer: Offer | None = None
    spent_s: float = 0.0

    def without_output(self) -> "Piece":
        """What it says of the prompt."""
        return self._replace(
            text="",
            tokens=[],
            logprobs=None if self.logprobs is None else [],
            finish_reason=self.finish_reason and "length",
            stop_reason=None,
        )

    def then(self, later: "Piece") -> "Piece":
        """Both as one."""
        logprobs = None if self.logprobs is None else [*self.logprobs, *(later.logprobs or ())]
        return later._replace(
            text=self.text + later.text,
            tokens=self.tokens + later.tokens,
            logprobs=logprobs,
            prompt_logprobs=self.prompt_logprobs,
            spent_s=self.spent_s + later.spent_s,
        )


class Stepped(NamedTuple):
    """A step's pieces, each with the key of its submission."""

    pieces: list[tuple[int, Piece]]


class Report(NamedTuple):
    """The engine's own counts; `experts` as `LLM.expert_tokens`."""

    metrics: Metrics
    num_running: int
    num_waiting: int
    num_free_blocks: int
    moves: MoveCounts | None = None
    experts: list[list[int]] | None = None


class Follow(NamedTuple):
    """From now on, send `Cached`."""


class Cached(NamedTuple):
    """What became of the contents of KV blocks.

    Attributes:
        events: in order.
        from_nothing: before them there is nothing: what was said earlier is void.
    """

    events: list[BlockEvent]
    from_nothing: bool = False


ToEngine = Submit | Abort | Ask | Watch | Follow | DeleteKV  # and None: end
FromEngine = Ready | Failed | Accepted | Refused | Stepped | Report | Update | Cached | Deleted
