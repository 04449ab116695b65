"""`LLM`: the engine for offline use, in a script or a notebook.

    with LLM("smollm2") as llm:
        for output in llm.generate(["1, 2, 3,", "The sky is"], SamplingParams(max_tokens=20)):
            print(output.text)

`assembly` builds the whole engine (decoder, KV cache, scheduler, tokenizer); `driver` steps it in the caller's thread.
Nothing runs between calls, and two of them can live side by side. Everything inside can be looked at: `llm.step()`
computes one step, `llm.engine` is the core's engine, `llm.blocks()` says who holds which KV block.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import torch

from miniserve.assembly import assemble
from miniserve.core.sampling_params import GREEDY, SamplingParams
from miniserve.core.step_record import StepRecord
from miniserve.driver import Driver, TextIterator
from miniserve.errors import InvalidRequestError
from miniserve.fleet.afd.apart import BATCHES, Apart
from miniserve.kvstore.options import TierOptions
from miniserve.model.expert_plan import ExpertOptions
from miniserve.model.load import LoadedModel
from miniserve.options import EngineOptions, LoadOptions, Speculation
from miniserve.outputs import BlockView, RequestOutput, block_views, snapshot
from miniserve.runtime.generation import Generation
from miniserve.runtime.text_engine import TextEngine

Prompt = str | Sequence[int]
Message = Mapping[str, Any]


class LLM:
    """A model and an engine around it.

    Args:
        model: alias, path or Hugging Face name, or a model that is loaded already.
        dtype, device, backend, quantization: as `load_model` takes them; not with a loaded model.
        max_model_len: most tokens of one request; None: what the model allows, or the memory if that is less.
        max_num_batched_tokens: most tokens computed in one step; a longer prompt is computed in chunks. None: 512 on a
            CPU, 8192 on a GPU.
        max_num_seqs: most requests computed at once; further ones wait.
        block_size: tokens of a KV block; None: 16 on a CPU, 64 on a GPU.
        kv_cache_memory: bytes for the KV cache; None: `memory_fraction` of what is free, on a GPU once what the largest
            step takes is off, which is computed to find out.
        kv_cache_dtype: "fp8" or "int8": keys and values in 8 bits with a scale for each head of each token, in half the
            memory; "auto": the dtype. With Triton kernels or plain torch.
        memory_fraction: share of the free memory; None: 0.25 on a CPU, 0.85 on a GPU.
        enable_prefix_caching: share full blocks between requests that begin alike.
        cuda_graphs: with Triton kernels, capture decode steps as CUDA graphs, which takes seconds at the start.
        speculation: guess tokens ahead and verify several at once, which changes no output: "ngram" takes the guesses
            from the request's own text, the name of a smaller model with the same vocabulary from that; ":N" behind
            it, as in "ngram:4", says how many tokens at most. None: one token at a time.
        overlap: schedule and launch a step before the result of the last is known; None: with CUDA graphs.
        tensor_parallel_size: how many processes hold the model, each a slice of it: on a CPU they share its threads, of
            GPUs each takes one. KV memory is then meant for each. Not with a loaded model.
        expert_parallel: these processes hold a mixture's experts whole, each some of them, and tokens travel to them.
        redundant_experts: slots of a layer for copies of the busiest experts, on all processes together.
        expert_loads: a JSON file of what `expert_tokens` gave: who is busy, and who shall be apart. None: all alike.
        afd: "MxN": M processes have attention and the KV, each its heads, and N others the feed-forward parts; a step's
            tokens cross in batches that take turns. On a CPU they share its threads, of GPUs each takes one.
        afd_batches: how many take turns.
        afd_trace: a folder in which each process records what it did when (see fleet/afd/spans.py). None: none.
        kv_host_mib: host memory for KV that the device has no room for any more: blocks are copied there as they fill,
            and back when a prompt needs them. None: none.
        kv_disk_dir, kv_disk_mib: a directory for the same, which may be shared and outlives the process, and how much
            its files may take, 10 GiB by default. None: none.
        kv_disk_key_file: a file with 32 bytes in base64 or hexadecimal, with which they are encrypted. None: they are
            not.
        kv_compress: "fp8": tiers hold 8-bit codes, a half or a quarter of the bytes, and what comes back is rounded.
        kv_load: "faster": load KV if that is faster than to compute it again; "always".
        moves: "shared-memory" or "nixl": whoever drives several engines may have requests move between them, with their
            KV, by this way (see fleet/moves.py).
        count_experts: of a mixture, count how many tokens each expert gets: see `expert_tokens`. None: on a CPU, where
            that costs nothing to speak of; on a GPU it is two more short kernels a layer.
        require_signed: a file with a public key: the model, and a draft model, are loaded only if its owner has signed
            them and they are as they were signed (see model/sources/trust.py). None: whatever is there.
        progress: called with (tensors done, tensors in all) while the weights load.
        on_step: called with a record of each step.

    Attributes:
        settings: what was decided where None or "auto" was given; `print(llm.settings)` says it in a line.
        model: the loaded model, with its decoder and configuration.
        tokenizer: the model's.
        engine: the core's engine: its scheduler, its pool of blocks, its metrics.

    Raises:
        MiniserveError: one of its subclasses, naming what is wrong.

    Example:
        >>> from miniserve import LLM, SamplingParams
        >>> with LLM("tiny-moe", dtype="float32") as llm:
        ...     outputs = llm.generate(["ROMEO.", "JULIET."], SamplingParams(max_tokens=8))
        >>> [output.text.strip() for output in outputs]
        ['I will not think you, sir', "I'll not be a good man"]
    """

    def __init__(
        self,
        model: str | LoadedModel = "smollm2",
        *,
        dtype: str = "auto",
        device: str = "auto",
        backend: str = "auto",
        quantization: str = "auto",
        max_model_len: int | None = None,
        max_num_batched_tokens: int | None = None,
        max_num_seqs: int = 64,
        block_size: int | None = None,
        kv_cache_memory: int | None = None,
        kv_cache_dtype: str = "auto",
        memory_fraction: float | None = None,
        enable_prefix_caching: bool = True,
        cuda_graphs: bool = True,
        speculation: str | None = None,
        overlap: bool | None = None,
        tensor_parallel_size: int = 1,
        expert_parallel: bool = False,
        redundant_experts: int = 0,
        expert_loads: str | Path | None = None,
        afd: str | None = None,
        afd_batches: int = BATCHES,
        afd_trace: str | Path | None = None,
        kv_host_mib: int | None = None,
        kv_disk_dir: str | Path | None = None,
        kv_disk_mib: int | None = None,
        kv_disk_key_file: str | Path | None = None,
        kv_compress: str = "none",
        kv_load: str = "faster",
        moves: str | None = None,
        count_experts: bool | None = None,
        require_signed: str | Path | None = None,
        progress: Callable[[int, int], None] | None = None,
        on_step: Callable[[StepRecord], None] | None = None,
    ) -> None:
        experts = ExpertOptions.of(expert_parallel, redundant_experts, expert_loads)
        apart = None if afd is None else Apart.parse(afd, afd_batches)
        trace = None if afd_trace is None else Path(afd_trace)
        loading = LoadOptions(dtype, device, backend, quantization, tensor_parallel_size, experts, apart, trace)
        options = EngineOptions(
            max_model_len=max_model_len,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            block_size=block_size,
            kv_cache_memory=kv_cache_memory,
            kv_cache_dtype=kv_cache_dtype,
            memory_fraction=memory_fraction,
            prefix_caching=enable_prefix_caching,
            cuda_graphs=cuda_graphs,
            speculation=Speculation.parse(speculation) if speculation is not None else None,
            overlap=overlap,
            tiers=TierOptions.of(
                kv_host_mib=kv_host_mib,
                kv_disk_dir=kv_disk_dir,
                kv_disk_mib=kv_disk_mib,
                kv_disk_key_file=kv_disk_key_file,
                kv_compress=kv_compress,
                kv_load=kv_load,
            ),
            moves=moves,
            count_experts=count_experts,
        )
        signed = None if require_signed is None else Path(require_signed)
        assembly = assemble(model, loading, options, require_signed=signed, progress=progress, on_step=on_step)
        self.model, self.settings, text_engine, self.tiers, self._beside, self.moves, self._routing = assembly
        self.tokenizer, self.engine = self.model.tokenizer, text_engine.engine
        self._driver = Driver(text_engine)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all requests and let go of the model and the KV cache. The object is of no use afterwards."""
        if "engine" in self.__dict__:
            self._driver.close()
            del self.engine, self.model
            self._beside.close()
            self.tiers = None
            torch.cuda.empty_cache()  # of a GPU's memory: to the system, not only to PyTorch

    def __getattr__(self, name: str) -> Any:
        # Only what is missing comes here: after `close`, everything that was let go of.
        if name in ("engine", "model"):
            raise InvalidRequestError("this LLM is closed")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def text_engine(self) -> TextEngine:
        """What is inside, for a server that drives it by itself. Not beside `generate`, `chat`, `stream` or `step`."""
        return self._driver.text_engine

    @property
    def expert_tokens(self) -> list[list[int]] | None:
        """Of each layer with experts, how many tokens each of them has got; None where that is not counted.

        All tokens computed since the engine was made, prompts and drafts included. Not counted where each rank
        sees a share of them (`expert_parallel`, or `afd` with several of attention). Reading waits for a GPU.
        `core.placement.imbalance` says how uneven a layer is, and `core.placement.place` takes one as loads.
        """
        return None if self._routing is None else self._routing[:, 1:].tolist()

    # Whole prompts in, whole outputs out.

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] = GREEDY,
        *,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Continue prompts, all of them together. Ctrl-C aborts them and leaves the engine usable.

        Args:
            prompts: a text or its token ids, or a list of these.
            params: for all, or one for each.
            progress: show a bar on stderr.

        Returns:
            One output a prompt, in order.

        Raises:
            InvalidRequestError: a prompt or parameter is out of range. Names which; nothing has been computed then.
        """
        alone = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
        several = cast("Sequence[Prompt]", [prompts] if alone else prompts)
        return self._driver.run(self._make_all(several, params), progress)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] = GREEDY,
        *,
        progress: bool = False,
        **variables: Any,
    ) -> list[RequestOutput]:
        """Reply to a conversation, or to each of several, in the form the model's chat template gives them.

        Args:
            messages: dicts with `role` and `content`, or a list of such conversations.
            params, progress: see `generate`.
            variables: passed to the chat template, such as `tools`.

        Raises:
            ChatTemplateError: the model has no chat template, or it rejected the messages.
            InvalidRequestError: see `generate`.
        """
        alone = len(messages) > 0 and isinstance(messages[0], Mapping)
        conversations = cast("Sequence[Sequence[Message]]", [messages] if alone else messages)
        prompts = [self.tokenizer.encode_chat(each, **variables) for each in conversations]
        return self._driver.run(self._make_all(prompts, params), progress)

    def stream(self, prompt: Prompt, params: SamplingParams = GREEDY) -> TextIterator:
        """Continue one prompt and give its text out as it comes.

        Raises:
            InvalidRequestError: see `generate`; `n` must be 1.
        """
        if params.n != 1:
            raise InvalidRequestError(f"n is {params.n}: a stream of text has one output; use generate")
        return TextIterator(self._driver, self._make(prompt, params))

    # One step at a time.

    def add_request(
        self,
        prompt: Prompt,
        params: SamplingParams = GREEDY,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
    ) -> str:
        """Queue a prompt for `step` and return its id. See `TextEngine.make` for the arguments and errors.

        Example:
            >>> from miniserve import LLM, SamplingParams
            >>> with LLM("tiny-moe", dtype="float32") as llm:
            ...     first = llm.add_request("ROMEO.", SamplingParams(max_tokens=1))
            ...     second = llm.add_request("JULIET.", SamplingParams(max_tokens=2))
            ...     while llm.has_work:
            ...         print([(output.request_id == first, len(output.token_ids)) for output in llm.step()])
            [(True, 1), (False, 1)]
            [(False, 2)]
        """
        generation = self._make(prompt, params, request_id=request_id, priority=priority, cache_salt=cache_salt)
        self._driver.add(generation)
        return generation.request_id

    @property
    def has_work(self) -> bool:
        """Whether any output is unfinished."""
        return self.text_engine.has_work

    def step(self) -> list[RequestOutput]:
        """Compute one step; returns the outputs of the prompts that it changed."""
        changed = {delta.generation.request_id: delta.generation for delta in self._driver.step()}
        return [snapshot(generation) for generation in changed.values()]

    def abort(self, request_id: str) -> bool:
        """End a prompt's outputs now; False if there is none by that name (it may just have finished)."""
        return self._driver.abort(request_id)

    def delete_kv(self, cache_salt: str) -> Future[dict[str, int]]:
        """Forget the KV of all prompts of one salt: on the device, in host memory, in the directory of the disk tier.

        Nothing of it is found from now on. Requests of that salt which run go on, and leave nothing behind; those that
        come later compute everything anew. See the README for what deleting files cannot promise.

        Returns:
            How many blocks each place had ("device", and the tiers' names), once they are gone. Its error is an OSError
            if files could not be deleted, or one is being written and that does not end; it is cancelled if the engine
            ends first.
        """
        counts = {"device": self.engine.scheduler.forget(cache_salt)}
        done: Future[dict[str, int]] = Future()
        if self.tiers is None:
            done.set_result(counts)
            return done

        def finish(tiers: Future[dict[str, int]]) -> None:
            if tiers.cancelled():
                done.cancel()
            elif error := tiers.exception():
                done.set_exception(error)
            else:
                done.set_result(counts | tiers.result())

        self.tiers.delete(cache_salt).add_done_callback(finish)
        return done

    @property
    def live_requests(self) -> set[str]:
        """Ids of the prompts that are not done."""
        return self._driver.live

    def blocks(self) -> list[BlockView]:
        """Every KV block, for looking at: who holds it and whether it can be found by its content."""
        return block_views(self.engine.scheduler)

    def _make(self, prompt: Prompt, params: SamplingParams, **options: Any) -> Generation:
        if isinstance(prompt, str):
            return self.text_engine.make(self.tokenizer.encode(prompt), params, prompt=prompt, **options)
        return self.text_engine.make(prompt, params, **options)

    def _make_all(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[Generation]:
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise InvalidRequestError(f"{len(prompts)} prompts came with {len(each)} sampling parameters")
        made = []
        for index, (prompt, wanted) in enumerate(zip(prompts, each, strict=True)):
            try:
                made.append(self._make(prompt, wanted))
            except InvalidRequestError as error:
                raise InvalidRequestError(f"prompt {index} of {len(prompts)}: {error}") from error
        return made
