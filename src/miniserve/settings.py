"""`EngineOptions`: what is asked of an engine. `EngineSettings`: what it is built with, every "as you see fit" decided
for the device it runs on.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from miniserve.errors import InvalidRequestError
from miniserve.kvstore.options import TierOptions
from miniserve.model.decoder import Decoder
from miniserve.model.load import LoadedModel
from miniserve.runtime.kv_cache import KV_DTYPES, block_bytes, choose_kv_dtype, choose_size
from miniserve.runtime.trial import free_beside_steps

BLOCK_SIZE = {"cpu": 16, "cuda": 64}
TRITON_BLOCK_MULTIPLE = 16
# A step's budget bounds how long a decode waits for a newcomer's prompt. Beyond some hundred tokens a CPU gains nothing
# from a larger one; a GPU does.
BATCHED_TOKENS = {"cpu": 512, "cuda": 8192}
# Of the memory that is free once the weights are loaded, and on a GPU a step has its own. A GPU is the engine's alone,
# but CUDA graphs need some still; a laptop's memory is not.
MEMORY_FRACTION = {"cpu": 0.25, "cuda": 0.85}

MOVES = ("shared-memory", "nixl")

DRAFT_TOKENS = 4  # of a draft, where no number is given
MOST_DRAFT_TOKENS = 32


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


@dataclass(frozen=True)
class EngineSettings:
    """What an engine was built with, everything decided.

    Attributes:
        device, backend, dtype, quantization, note: see `model.choices.Choices`.
        max_model_len: most tokens of one request, prompt and output.
        max_num_batched_tokens: most tokens computed in one step.
        max_num_seqs: most requests computed at once.
        block_size: tokens of a KV block.
        num_blocks: KV blocks in the pool.
        kv_cache_bytes: what they take on each rank, scales and as many blocks of a draft model included.
        kv_cache_dtype: of keys and values: "float32", "bfloat16", "float16", "fp8" or "int8".
        prefix_caching: whether full blocks are shared by content.
        cuda_graphs: whether decode steps are launched as CUDA graphs: on one GPU with Triton kernels, which never wait.
        speculation: who guesses tokens ahead, if anyone.
        tensor_parallel_size: how many processes hold the model, each a slice of it.
        expert_parallel: whether of a mixture they hold some of the experts whole instead.
        apart: whether feed-forward parts have processes of their own.
        overlap: whether a step is launched before the last one's result is known. A CPU is the device itself.
        tiers: where KV may go beside the device, if anywhere.
        moves: the way by which requests move between engines with their KV: see `MOVES`; None: they stay.
    """

    model: str
    device: str
    backend: str
    dtype: str
    quantization: str
    note: str
    max_model_len: int
    max_num_batched_tokens: int
    max_num_seqs: int
    block_size: int
    num_blocks: int
    kv_cache_bytes: int
    kv_cache_dtype: str
    prefix_caching: bool
    cuda_graphs: bool
    speculation: Speculation | None
    tensor_parallel_size: int
    expert_parallel: bool
    apart: bool
    overlap: bool
    tiers: TierOptions | None
    moves: str | None

    @classmethod
    def decide(
        cls,
        model: LoadedModel,
        options: EngineOptions,
        *,
        draft: LoadedModel | None = None,
        free: Callable[[Decoder, int, int, int], int] | None = None,
    ) -> "EngineSettings":
        """Settings for a model whose weights are in memory already.

        Args:
            model: what the engine is built around.
            options: what is asked of it.
            draft: the draft model, if it has one; its weights are in memory too.
            free: says how many bytes a KV cache could take; None: `trial.free_beside_steps`, which does for one rank.

        Raises:
            InvalidRequestError: an option is out of its range, or memory does not suffice. Names it and the limit.
        """
        device, kv_dtype = model.decoder.device, choose_kv_dtype(options.kv_cache_dtype, model.choices)
        max_num_seqs, speculation = options.max_num_seqs, options.speculation
        block_size, max_num_batched_tokens = options.block_size, options.max_num_batched_tokens
        if block_size is None:
            block_size = BLOCK_SIZE[device.type]
        if max_num_batched_tokens is None:
            max_num_batched_tokens = BATCHED_TOKENS[device.type]
        for name, value in (
            ("block_size", block_size),
            ("max_num_seqs", max_num_seqs),
            ("max_num_batched_tokens", max_num_batched_tokens),
        ):
            if value < 1:
                raise InvalidRequestError(f"{name} is {value}: it must be at least 1")
        if model.choices.backend == "triton" and block_size % TRITON_BLOCK_MULTIPLE:
            raise InvalidRequestError(
                f"block_size is {block_size}: with the Triton kernels it must be a multiple of {TRITON_BLOCK_MULTIPLE}"
            )
        kv_cache_memory, memory_fraction = options.kv_cache_memory, options.memory_fraction
        if memory_fraction is not None and not 0 < memory_fraction <= 1:
            raise InvalidRequestError(f"memory_fraction is {memory_fraction}: it must lie above 0 and at most 1")
        if kv_cache_memory is not None and memory_fraction is not None:
            raise InvalidRequestError("kv_cache_memory and memory_fraction exclude each other: both size the KV cache")
        if kv_cache_memory is None:
            fraction = memory_fraction if memory_fraction is not None else MEMORY_FRACTION[device.type]
            free = free_beside_steps if free is None else free
            choosing = max_num_seqs * (1 + speculation.num_tokens if speculation else 1)  # places of a step
            kv_cache_memory = int(free(model.decoder, block_size, max_num_batched_tokens, choosing) * fraction)
        config, ranks = model.decoder.config, model.decoder.communicator.size
        block = block_bytes(config, block_size, kv_dtype)
        draft_block = block_bytes(draft.config, block_size, draft.decoder.dtype) if draft else 0
        num_blocks, max_model_len = choose_size(
            config,
            block_size=block_size,
            dtype=kv_dtype,
            memory_bytes=kv_cache_memory * block // (block + draft_block),  # the draft model has as many blocks
            max_num_seqs=max_num_seqs,
            max_model_len=options.max_model_len,
        )
        if draft:
            _check_draft(model, draft, max_model_len)
        cuda_graphs = options.cuda_graphs and model.choices.backend == "triton" and ranks == 1
        cuda_graphs = cuda_graphs and model.decoder.is_whole
        if options.overlap and not cuda_graphs:
            raise InvalidRequestError("overlap is True: it needs CUDA graphs, which this engine does without")
        if options.overlap and speculation:
            raise InvalidRequestError("overlap and speculation exclude each other: a draft follows the newest token")
        _check_tiers(options, ranks)
        _check_moves(options, ranks)
        return cls(
            model=model.files.name,
            device=str(model.choices.device),
            backend=model.choices.backend,
            dtype=_dtype_name(model.choices.dtype),
            quantization=model.choices.quantization,
            note=model.choices.note,
            max_model_len=max_model_len,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            block_size=block_size,
            num_blocks=num_blocks,
            kv_cache_bytes=num_blocks * (block + draft_block),
            kv_cache_dtype=_dtype_name(kv_dtype) if options.kv_cache_dtype == "auto" else options.kv_cache_dtype,
            prefix_caching=options.prefix_caching,
            cuda_graphs=cuda_graphs,
            speculation=speculation,
            tensor_parallel_size=ranks,
            expert_parallel=model.decoder.experts is not None,
            apart=not model.decoder.is_whole,
            overlap=cuda_graphs and not speculation if options.overlap is None else options.overlap,
            tiers=options.tiers,
            moves=options.moves,
        )

    def __str__(self) -> str:
        """One line for a terminal: what runs, and on what."""
        threads = f"{torch.get_num_threads()} threads"
        kernels = {"cpu": f"C++ kernels, {threads}", "triton": "Triton kernels", "torch": "plain torch"}[self.backend]
        weights = {"none": "", "file": ", weights as in the file"}.get(
            self.quantization, f", {self.quantization} weights"
        )
        ranks = f", {self.tensor_parallel_size} ranks" if self.tensor_parallel_size > 1 else ""
        ranks += " with whole experts" if self.expert_parallel else ""
        ranks += ", feed-forward parts apart" if self.apart else ""
        kv = f", {self.kv_cache_dtype} KV" if self.kv_cache_dtype in KV_DTYPES else ""
        tiers = f", KV also in {self.tiers}" if self.tiers else ""
        return f"{self.model} on {self.device} ({kernels}{ranks}), {self.dtype}{weights}{kv}{tiers}"


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_tiers(options: EngineOptions, ranks: int) -> None:
    """Tiers find blocks by their content, and those of this process."""
    if options.tiers is None:
        return
    if not options.prefix_caching:
        raise InvalidRequestError("kv_host_mib and kv_disk_dir need prefix caching: it is what finds blocks again")
    if ranks > 1:
        raise InvalidRequestError(
            f"kv_host_mib and kv_disk_dir do not go with tensor_parallel_size {ranks}: the other ranks' slices of the "
            "KV are in processes that tiers do not reach"
        )


def _check_moves(options: EngineOptions, ranks: int) -> None:
    """A request moves with one rank's KV."""
    moves = options.moves
    if moves is None:
        return
    if moves not in MOVES:
        raise InvalidRequestError(f"moves is {moves!r}: it must be {' or '.join(MOVES)}")
    if ranks > 1:
        raise InvalidRequestError(
            f"moves, by which several engines serve, does not go with tensor_parallel_size {ranks}: the other ranks' "
            "KV would stay"
        )


def _check_draft(model: LoadedModel, draft: LoadedModel, max_model_len: int) -> None:
    """Guesses must be tokens of the model, for any sequence it takes. That they mean the same only makes them good."""
    name = f"draft model {draft.files.name}"
    if draft.config.vocab_size != model.config.vocab_size:
        raise InvalidRequestError(
            f"{name} has a vocabulary of {draft.config.vocab_size} tokens; {model.files.name} has one of "
            f"{model.config.vocab_size}: they must be the same"
        )
    if draft.config.max_position_embeddings < max_model_len:
        raise InvalidRequestError(
            f"{name} has a context of {draft.config.max_position_embeddings} tokens; max_model_len is {max_model_len}"
        )
