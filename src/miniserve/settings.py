"""`EngineSettings`: what an engine is built with, every "as you see fit" of its options decided for the device."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from miniserve.errors import InvalidRequestError
from miniserve.kvstore.options import TierOptions
from miniserve.model.decoder import Decoder
from miniserve.model.load import LoadedModel
from miniserve.options import EngineOptions, Speculation
from miniserve.runtime.kv_cache import KV_DTYPES, block_bytes, choose_kv_dtype, choose_size
from miniserve.runtime.trial import free_beside_steps

BLOCK_SIZE = {"cpu": 16, "cuda": 64}
# A step's budget bounds how long a decode waits for a newcomer's prompt. Beyond some hundred tokens a CPU gains nothing
# from a larger one; a GPU does.
BATCHED_TOKENS = {"cpu": 512, "cuda": 8192}
# Of the memory that is free once the weights are loaded, and on a GPU a step has its own. A GPU is the engine's alone,
# but CUDA graphs need some still; a laptop's memory is not.
MEMORY_FRACTION = {"cpu": 0.25, "cuda": 0.85}


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
        decoder, choices = model.decoder, model.choices
        kind, ranks, speculation = decoder.device.type, decoder.communicator.size, options.speculation
        kv_dtype = choose_kv_dtype(options.kv_cache_dtype, choices)
        block_size, batched_tokens = options.block_size, options.max_num_batched_tokens
        block_size = BLOCK_SIZE[kind] if block_size is None else block_size
        batched_tokens = BATCHED_TOKENS[kind] if batched_tokens is None else batched_tokens
        options.check(block_size, batched_tokens, choices.backend, ranks)
        cuda_graphs = options.cuda_graphs and choices.backend == "triton" and ranks == 1 and decoder.is_whole
        if options.overlap and not cuda_graphs:
            raise InvalidRequestError("overlap is True: it needs CUDA graphs, which this engine does without")
        memory = options.kv_cache_memory
        if memory is None:
            fraction = MEMORY_FRACTION[kind] if options.memory_fraction is None else options.memory_fraction
            places = options.max_num_seqs * (1 + speculation.num_tokens if speculation else 1)  # of a step
            memory = int((free or free_beside_steps)(decoder, block_size, batched_tokens, places) * fraction)
        block = block_bytes(decoder.config, block_size, kv_dtype)
        draft_block = block_bytes(draft.config, block_size, draft.decoder.dtype) if draft else 0
        num_blocks, max_model_len = choose_size(
            decoder.config,
            block_size=block_size,
            dtype=kv_dtype,
            memory_bytes=memory * block // (block + draft_block),  # the draft model has as many blocks
            max_num_seqs=options.max_num_seqs,
            max_model_len=options.max_model_len,
        )
        if draft:
            _check_draft(model, draft, max_model_len)
        return cls(
            model=model.files.name,
            device=str(choices.device),
            backend=choices.backend,
            dtype=_dtype_name(choices.dtype),
            quantization=choices.quantization,
            note=choices.note,
            max_model_len=max_model_len,
            max_num_batched_tokens=batched_tokens,
            max_num_seqs=options.max_num_seqs,
            block_size=block_size,
            num_blocks=num_blocks,
            kv_cache_bytes=num_blocks * (block + draft_block),
            kv_cache_dtype=_dtype_name(kv_dtype) if options.kv_cache_dtype == "auto" else options.kv_cache_dtype,
            prefix_caching=options.prefix_caching,
            cuda_graphs=cuda_graphs,
            speculation=speculation,
            tensor_parallel_size=ranks,
            expert_parallel=decoder.experts is not None,
            apart=not decoder.is_whole,
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
