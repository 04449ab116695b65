"""An engine put together: from a model's name and what is asked of an engine to one that takes prompts.

The order is that of memory: weights first, of the draft model too; then the KV cache, sized by what they leave; then
the CUDA graphs, which are captured on it, and the tiers that its blocks go to. Where anything fails on the way, the
processes of the other ranks end.

What is decided for the device is `settings`' business, what is computed the runtime's. Nothing here is of use after the
engine stands.
"""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from miniserve.core.block_pool import BlockPool
from miniserve.core.connectors import Connectors
from miniserve.core.engine import Engine
from miniserve.core.loading import Recompute
from miniserve.core.ngram import NGramProposer
from miniserve.core.proposer import Proposer
from miniserve.core.scheduler import Scheduler
from miniserve.core.step_record import StepRecord
from miniserve.errors import InvalidRequestError
from miniserve.fleet.afd.ranks import ApartRanks
from miniserve.fleet.afd.runner import ApartModelRunner
from miniserve.fleet.moves import Moves
from miniserve.kvstore.blocks import BlockCopier
from miniserve.kvstore.connector import TieredKV
from miniserve.kvstore.layout import KVLayout
from miniserve.kvstore.nixl import Nixl
from miniserve.kvstore.options import open_tiers
from miniserve.kvstore.shared_memory import SharedMemory
from miniserve.model.load import LoadedModel, load_model
from miniserve.model.sources.trust import Trust
from miniserve.options import EngineOptions, LoadOptions
from miniserve.runtime.draft_model import DraftModel
from miniserve.runtime.graphs import DecodeGraphs
from miniserve.runtime.kv_cache import KV_DTYPES, KVCache
from miniserve.runtime.model_runner import ModelRunner
from miniserve.runtime.newest import Newest
from miniserve.runtime.rank_process import CacheShape
from miniserve.runtime.ranks import Ranks
from miniserve.runtime.sharded_runner import ShardedModelRunner
from miniserve.runtime.text_engine import TextEngine
from miniserve.settings import EngineSettings

Progress = Callable[[int, int], None]


class Assembly(NamedTuple):
    """An engine, and what it is made of.

    Attributes:
        model: its weights and tokenizer.
        settings: what it was built with.
        text_engine: the engine, with text around it.
        tiers: where KV goes beside the device, if anywhere.
        beside: what runs beside the caller's thread, the processes of the other ranks and the threads that copy KV, if
            there are any; it ends when this is closed.
        moves: by which requests come and go, if they do.
        routing: how many tokens each expert got, as `Decoder.count_experts` gives it, if that is counted.
    """

    model: LoadedModel
    settings: EngineSettings
    text_engine: TextEngine
    tiers: TieredKV | None
    beside: ExitStack
    moves: Moves | None
    routing: Tensor | None


def assemble(
    model: str | LoadedModel,
    loading: LoadOptions,
    options: EngineOptions,
    *,
    require_signed: Path | None = None,
    progress: Progress | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> Assembly:
    """Load a model, unless it is loaded, and build an engine around it.

    Args:
        model: alias, path or Hugging Face name, or a model that is loaded already.
        loading: how it is loaded; of a loaded one, the default.
        options: what is asked of the engine.
        require_signed, progress, on_step: see `LLM`.

    Raises:
        MiniserveError: one of its subclasses, naming what is wrong.
    """
    trust = Trust(require_signed)
    with ExitStack() as stack:
        ranks = None
        if not isinstance(model, LoadedModel):
            model, ranks = _load(trust.admit(model), loading, stack, progress)
        elif require_signed:
            raise InvalidRequestError("require_signed is looked after before a model is loaded: this one is already")
        elif loading != LoadOptions():
            raise InvalidRequestError(
                "dtype, device, backend, quantization, tensor_parallel_size, expert_parallel and afd decide how a "
                "model is loaded: this model is loaded already"
            )
        draft = None
        if options.speculation and options.speculation.model:
            device, backend = str(model.choices.device), model.choices.backend
            draft = load_model(
                trust.admit(options.speculation.model), device=device, backend=backend, progress=progress
            )
        free = None
        if ranks:
            free = ranks.free if isinstance(ranks, ApartRanks) else ranks.free_beside_steps
        settings = EngineSettings.decide(model, options, draft=draft, free=free)
        routing = _routing(model, options)
        runner = _runner(model, settings, ranks)
        tiers = _tiers(model, settings, runner)
        if tiers:
            stack.callback(tiers.close)
        moves = _moves(model, settings, runner.cache)
        if moves:
            stack.callback(moves.close)
        scheduler = Scheduler(
            BlockPool(settings.num_blocks, settings.block_size),
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            max_model_len=settings.max_model_len,
            prefix_caching=settings.prefix_caching,
            connector=Connectors(moves, tiers) if moves and tiers else moves or tiers,
            proposer=_proposer(settings, draft),
        )
        identity = f"{model.files.path}:{model.choices}:{settings.kv_cache_dtype}"  # of what a block holds
        if tiers:
            identity = tiers.identity  # the same wherever the model lies, and whenever
        engine = Engine(scheduler, runner, on_step=on_step)
        engine.metrics.tiers = tiers.counts if tiers else {}
        text_engine = TextEngine(engine, model.tokenizer, identity)
        if routing is not None:
            routing.zero_()  # of what was computed to warm up
        trust.confirm()  # by now the other ranks have loaded theirs too
        return Assembly(model, settings, text_engine, tiers, stack.pop_all(), moves, routing)


def _load(
    name: str, loading: LoadOptions, stack: ExitStack, progress: Progress | None
) -> tuple[LoadedModel, Ranks | ApartRanks | None]:
    """The model, or rank 0's part of it, and the other ranks, which `stack` ends."""
    how = dict(vars(loading))
    size, apart, trace = (how.pop(each) for each in ("tensor_parallel_size", "apart", "trace"))
    if apart:
        del how["experts"]
        sides = stack.enter_context(ApartRanks(name, apart, **how, trace=trace))
        how |= {"device": sides.device, "communicator": sides.communicator, "side": "attention"}
        return load_model(name, **how, progress=progress), sides
    if size == 1:
        return load_model(name, **how, progress=progress), None
    ranks = stack.enter_context(Ranks(name, size, **how))
    how |= {"device": ranks.device}
    return load_model(name, **how, communicator=ranks.communicator, progress=progress), ranks


def _routing(model: LoadedModel, options: EngineOptions) -> Tensor | None:
    """The counters of a mixture's experts, if they are asked for: without a word, on a CPU, where they cost nothing.

    Before anything is captured or called: the counters are part of it.

    Raises:
        InvalidRequestError: they are asked for, and there is no mixture, or this rank sees a share of the tokens alone.
    """
    decoder = model.decoder
    reason = "" if decoder.mixtures else "this model has no mixture of experts"
    if decoder.experts or (decoder.communicator.size > 1 and not decoder.is_whole):
        reason = "each rank chooses experts for its share of the tokens, and counts of one are not those of all"
    if reason:
        if options.count_experts:
            raise InvalidRequestError(f"count_experts: {reason}")
        return None
    wanted = decoder.device.type == "cpu" if options.count_experts is None else options.count_experts
    return decoder.count_experts() if wanted else None


def _runner(model: LoadedModel, settings: EngineSettings, ranks: Ranks | ApartRanks | None) -> ModelRunner:
    """What computes steps, with its KV cache, and graphs where the settings say so."""
    decoder, size = model.decoder, settings.block_size
    kv_dtype = KV_DTYPES.get(settings.kv_cache_dtype, model.choices.dtype)
    cache = KVCache(decoder.config, settings.num_blocks, size, dtype=kv_dtype, device=decoder.device)
    newest = Newest(settings.max_num_seqs, decoder.device) if settings.overlap else None
    graphs = None
    if settings.cuda_graphs:
        graphs = DecodeGraphs(
            decoder,
            cache,
            max_batch=settings.max_num_seqs,
            max_blocks=-(-settings.max_model_len // size),
            block_size=size,
            newest=newest,
        )
    runner: ModelRunner
    if isinstance(ranks, ApartRanks):
        runner = ApartModelRunner(decoder, cache, CacheShape(settings.num_blocks, size, kv_dtype), ranks)
    elif ranks:
        ranks.make_caches(settings.num_blocks, size, kv_dtype)
        runner = ShardedModelRunner(decoder, cache, size, ranks)
    else:
        runner = ModelRunner(decoder, cache, size, graphs, newest)
    if settings.backend == "triton":
        runner.warm_up()
    return runner


TRIAL_TOKENS = 256  # of the prompt that tells how long computing takes: many enough to fill the device, and soon done


def _tiers(model: LoadedModel, settings: EngineSettings, runner: ModelRunner) -> TieredKV | None:
    """Where KV goes beside the device, if anywhere; a prompt is computed to know what loading must be faster than."""
    if settings.tiers is None:
        return None
    config, room = model.config, settings.num_blocks * settings.block_size
    num_tokens = min(TRIAL_TOKENS, settings.max_num_batched_tokens, room)
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_embeddings else 2)
    recompute = Recompute.measured(
        2.0 * (config.num_active_parameters() - embeddings),
        4.0 * config.num_layers * config.num_heads * config.head_dim,
        num_tokens,
        runner.prompt_seconds(num_tokens),
    )
    layout = KVLayout.of(model, settings.block_size, settings.kv_cache_dtype)
    return open_tiers(settings.tiers, runner.cache, layout, recompute)


def _moves(model: LoadedModel, settings: EngineSettings, cache: KVCache) -> Moves | None:
    """The connector of an engine from which requests move, if they do."""
    if settings.moves is None:
        return None
    layout = KVLayout.of(model, settings.block_size, settings.kv_cache_dtype)
    transfer = SharedMemory() if settings.moves == "shared-memory" else Nixl()
    return Moves(BlockCopier(cache, layout), transfer)


def _proposer(settings: EngineSettings, draft: LoadedModel | None) -> Proposer | None:
    """Who guesses: a draft model with KV memory of its own, the request's text, or nobody."""
    if settings.speculation is None:
        return None
    longest = settings.speculation.num_tokens
    if draft is None:
        return NGramProposer(longest)
    decoder, blocks, size = draft.decoder, settings.num_blocks, settings.block_size
    cache = KVCache(draft.config, blocks, size, dtype=decoder.dtype, device=decoder.device)
    runner = ModelRunner(decoder, cache, size)
    if draft.choices.backend == "triton":
        runner.warm_up()
    return DraftModel(runner, BlockPool(blocks, size), longest, settings.max_num_batched_tokens)
