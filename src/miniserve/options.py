"""What is asked: `LoadOptions` of the loading of a model, `EngineOptions` of the engine around it.

In the terms of `LLM`'s arguments; None stands for "as you see fit", which `settings` decides for the device. What holds
on any device is checked here.
"""

from dataclasses import dataclass
from pathlib import Path

from miniserve.errors import InvalidRequestError
from miniserve.fleet.afd.apart import Apart
from miniserve.kvstore.options import TierOptions
from miniserve.model.expert_plan import ExpertOptions

MOVES = ("shared-memory", "nixl")
TRITON_BLOCK_MULTIPLE = 16

DRAFT_TOKENS = 4  # of a draft, where no number is given
MOST_DRAFT_TOKENS = 32


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded, as `load_model` takes it, and by how many processes, which may be of two sides.

    Raises:
        InvalidRequestError: experts are to be shared out, and there is one process; or two things exclude each other.
    """

    dtype: str = "auto"
    device: str = "auto"
    backend: str = "auto"
    quantization: str = "auto"
    tensor_parallel_size: int = 1
    experts: ExpertOptions | None = None
    apart: Apart | None = None
    trace: Path | None = None

    def __post_init__(self) -> None:
        if self.apart and self.tensor_parallel_size > 1:
            raise InvalidRequestError(
                f"afd says how many processes there are: it does not go with tensor_parallel_size, which is "
                f"{self.tensor_parallel_size}, or expert_parallel"
            )
        if self.trace and not self.apart:
            raise InvalidRequestError("afd_trace records the turns of two sides: it goes with afd")
        if self.experts and self.tensor_parallel_size == 1:
            raise InvalidRequestError(
                "expert_parallel shares experts out among ranks: tensor_parallel_size, which is 1, must be more"
            )


@dataclass(frozen=True)
class Speculation:
    """Guess tokens ahead and verify several at once.

    Attributes:
        num_tokens: the most tokens of a draft.
        model: alias, path or Hugging Face name of the draft model; None: from the request's own text.
    """

    num_tokens: int
    model: str | None

    @classmethod
    def parse(cls, text: str) -> "Speculation":
        """From "ngram" or a draft model's name, and ":N" behind it for drafts of up to N tokens.

        Raises:
            InvalidRequestError: no name, or a number out of range.
        """
        name, colon, number = text.rpartition(":")
        if not colon or not number.isdecimal():
            name, number = text, str(DRAFT_TOKENS)
        if not name:
            raise InvalidRequestError(f"speculation is {text!r}: it must be ngram or a draft model, and may end in :N")
        if not 1 <= int(number) <= MOST_DRAFT_TOKENS:
            raise InvalidRequestError(
                f"speculation is {text!r}: a draft must have between 1 and {MOST_DRAFT_TOKENS} tokens"
            )
        return cls(int(number), None if name == "ngram" else name)


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What is asked of an engine. The names and the meaning of None are those of `LLM`'s arguments."""

    max_model_len: int | None
    max_num_batched_tokens: int | None
    max_num_seqs: int
    block_size: int | None
    kv_cache_memory: int | None
    kv_cache_dtype: str
    memory_fraction: float | None
    prefix_caching: bool
    cuda_graphs: bool
    speculation: Speculation | None
    overlap: bool | None
    tiers: TierOptions | None = None
    moves: str | None = None
    count_experts: bool | None = None

    def check(self, block_size: int, max_num_batched_tokens: int, backend: str, ranks: int) -> None:
        """See that its parts are in their ranges and go together, on so many ranks of such a backend.

        Raises:
            InvalidRequestError: names what does not, and the limit.
        """
        self._check_sizes(block_size, max_num_batched_tokens, backend)
        fraction = self.memory_fraction
        if fraction is not None and not 0 < fraction <= 1:
            raise InvalidRequestError(f"memory_fraction is {fraction}: it must lie above 0 and at most 1")
        if self.kv_cache_memory is not None and fraction is not None:
            raise InvalidRequestError("kv_cache_memory and memory_fraction exclude each other: both size the KV cache")
        if self.overlap and self.speculation:
            raise InvalidRequestError("overlap and speculation exclude each other: a draft follows the newest token")
        self._check_tiers(ranks)
        self._check_moves(ranks)

    def _check_sizes(self, block_size: int, max_num_batched_tokens: int, backend: str) -> None:
        for name, value in (
            ("block_size", block_size),
            ("max_num_seqs", self.max_num_seqs),
            ("max_num_batched_tokens", max_num_batched_tokens),
        ):
            if value < 1:
                raise InvalidRequestError(f"{name} is {value}: it must be at least 1")
        if backend == "triton" and block_size % TRITON_BLOCK_MULTIPLE:
            raise InvalidRequestError(
                f"block_size is {block_size}: with the Triton kernels it must be a multiple of {TRITON_BLOCK_MULTIPLE}"
            )

    def _check_tiers(self, ranks: int) -> None:
        """Tiers find blocks by their content, and those of this process."""
        if self.tiers is None:
            return
        if not self.prefix_caching:
            raise InvalidRequestError("kv_host_mib and kv_disk_dir need prefix caching: it is what finds blocks again")
        if ranks > 1:
            raise InvalidRequestError(
                f"kv_host_mib and kv_disk_dir do not go with tensor_parallel_size {ranks}: the other ranks' slices of "
                "the KV are in processes that tiers do not reach"
            )

    def _check_moves(self, ranks: int) -> None:
        """A request moves with one rank's KV."""
        moves = self.moves
        if moves is None:
            return
        if moves not in MOVES:
            raise InvalidRequestError(f"moves is {moves!r}: it must be {' or '.join(MOVES)}")
        if ranks > 1:
            raise InvalidRequestError(
                f"moves, by which several engines serve, does not go with tensor_parallel_size {ranks}: the other "
                "ranks' KV would stay"
            )
