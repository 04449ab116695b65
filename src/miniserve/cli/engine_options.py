"""What is said of an engine to `miniserve serve` and to a worker of Dynamo: one table; its fields are options of both.

Commands that take fewer of them list theirs.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from miniserve.cli.loading import (
    AfdOption,
    AfdTraceOption,
    BackendOption,
    DeviceOption,
    DtypeOption,
    ExpertLoadsOption,
    ExpertParallelOption,
    KVCacheDtypeOption,
    KVCompressOption,
    KVDiskKeyOption,
    KVDiskMibOption,
    KVDiskOption,
    KVHostOption,
    QuantizationOption,
    RedundantExpertsOption,
    RequireSignedOption,
    SpeculationOption,
    TensorParallelOption,
    ThreadsOption,
    open_llm,
)

if TYPE_CHECKING:
    from miniserve.llm import LLM


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """The table."""

    silence_seconds: Annotated[
        float, typer.Option(help="An engine whose step takes longer is taken for hung and started again.", min=1)
    ] = 600.0
    max_model_len: Annotated[int | None, typer.Option(help="Most tokens of one request.")] = None
    max_num_seqs: Annotated[int, typer.Option(help="Most outputs computed at once.")] = 64
    max_num_batched_tokens: Annotated[int | None, typer.Option(help="Most tokens computed in a step.")] = None
    kv_cache_mib: Annotated[
        int | None, typer.Option(help="Memory for the KV cache; default: a share of what is free.", min=1)
    ] = None
    prefix_caching: Annotated[bool, typer.Option(help="Share KV blocks between prompts that begin alike.")] = True
    dtype: DtypeOption = "auto"
    device: DeviceOption = "auto"
    backend: BackendOption = "auto"
    quantization: QuantizationOption = "auto"
    kv_cache_dtype: KVCacheDtypeOption = "auto"
    kv_host_mib: KVHostOption = None
    kv_disk: KVDiskOption = None
    kv_disk_mib: KVDiskMibOption = None
    kv_disk_key_file: KVDiskKeyOption = None
    kv_compress: KVCompressOption = "none"
    speculation: SpeculationOption = None
    threads: ThreadsOption = None
    tensor_parallel_size: TensorParallelOption = 1
    expert_parallel: ExpertParallelOption = False
    redundant_experts: RedundantExpertsOption = 0
    expert_loads: ExpertLoadsOption = None
    afd: AfdOption = None
    afd_trace: AfdTraceOption = None
    require_signed: RequireSignedOption = None

    def opener(self, model: str, *, moves: str | None) -> "Callable[[], LLM]":
        """What opens such an engine, in whichever process calls it. `moves`: as `LLM` takes it."""
        how = {name: getattr(self, name) for name in ("dtype", "device", "backend", "quantization", "threads")}
        return functools.partial(
            open_llm,
            model,
            how,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            enable_prefix_caching=self.prefix_caching,
            kv_cache_memory=None if self.kv_cache_mib is None else self.kv_cache_mib * 2**20,
            kv_cache_dtype=self.kv_cache_dtype,
            kv_host_mib=self.kv_host_mib,
            kv_disk_dir=self.kv_disk,
            kv_disk_mib=self.kv_disk_mib,
            kv_disk_key_file=self.kv_disk_key_file,
            kv_compress=self.kv_compress,
            speculation=self.speculation,
            tensor_parallel_size=self.tensor_parallel_size,
            expert_parallel=self.expert_parallel,
            redundant_experts=self.redundant_experts,
            expert_loads=self.expert_loads,
            afd=self.afd,
            afd_trace=self.afd_trace,
            require_signed=self.require_signed,
            moves=moves,
        )
