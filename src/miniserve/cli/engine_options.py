"""What is said of an engine on a command line, in tables that build on one another.

`LLMOptions` are those of every command with an engine, `TierOptions` say where its KV goes besides, and `EngineOptions`
are all that `miniserve serve` and a worker of Dynamo take.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from miniserve.cli.loading import ModelOptions, open_llm

if TYPE_CHECKING:
    from miniserve.llm import LLM


@dataclass(frozen=True, kw_only=True)
class LLMOptions(ModelOptions):
    """An engine of one or several processes. Fields of its own have `LLM`'s names."""

    kv_cache_dtype: Annotated[
        str, typer.Option(help="auto; with Triton or plain torch fp8 or int8: half the memory.")
    ] = "auto"
    speculation: Annotated[
        str | None, typer.Option(help="Guess tokens ahead: ngram, or a draft model; :N behind it for up to N tokens.")
    ] = None
    tensor_parallel_size: Annotated[
        int, typer.Option(help="Processes that hold a slice of the model each, on a GPU each.")
    ] = 1
    expert_parallel: Annotated[
        bool, typer.Option("--expert-parallel", help="Of a mixture, these processes hold some of the experts whole.")
    ] = False
    redundant_experts: Annotated[int, typer.Option(help="Slots of a layer for copies of the busiest experts.")] = 0
    expert_loads: Annotated[
        Path | None, typer.Option(help="JSON: each layer's experts' loads, by which they are placed.")
    ] = None
    afd: Annotated[
        str | None, typer.Option(help="MxN: attention and KV in M processes, the feed-forward parts in N others.")
    ] = None
    afd_trace: Annotated[Path | None, typer.Option(help="A folder where these record who computed what when.")] = None
    require_signed: Annotated[
        Path | None, typer.Option(help="A public key (PEM): a model that its owner has not signed is refused.")
    ] = None

    def open(self, model: str, **more: Any) -> "LLM":
        """Such an engine. `more` goes to `LLM`, too."""
        return open_llm(model, self, **self._arguments(), **more)

    def _arguments(self) -> dict[str, Any]:
        """Of `LLM`, but for how the model is loaded."""
        return {name: getattr(self, name) for name in LLMOptions.__annotations__}


@dataclass(frozen=True, kw_only=True)
class TierOptions:
    """Where KV goes when it leaves the device."""

    kv_host_mib: Annotated[
        int | None, typer.Option(help="Host memory for KV that the device has no room for; each engine's.")
    ] = None
    kv_disk: Annotated[
        Path | None, typer.Option(help="A directory for the same; it outlives the process and may be shared.")
    ] = None
    kv_disk_mib: Annotated[int | None, typer.Option(help="What its files may take; default: 10240.")] = None
    kv_disk_key_file: Annotated[
        Path | None, typer.Option(help="32 bytes, base64 or hexadecimal: encrypt these files.")
    ] = None
    kv_compress: Annotated[str, typer.Option(help="How host and disk hold KV: none, or fp8: half of it, rounded.")] = (
        "none"
    )

    def tiers(self) -> dict[str, Any]:
        """Arguments of `LLM`."""
        return {
            "kv_host_mib": self.kv_host_mib,
            "kv_disk_dir": self.kv_disk,
            "kv_disk_mib": self.kv_disk_mib,
            "kv_disk_key_file": self.kv_disk_key_file,
            "kv_compress": self.kv_compress,
        }


@dataclass(frozen=True, kw_only=True)
class EngineOptions(TierOptions, LLMOptions):
    """All of it, with the limits of what runs for long."""

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
    count_experts: Annotated[
        bool | None, typer.Option(help="Of a mixture, count each expert's tokens; default: on a CPU.")
    ] = None

    def opener(self, model: str, *, moves: str | None) -> "Callable[[], LLM]":
        """What opens such an engine, in whichever process calls it. `moves`: as `LLM` takes it."""
        return functools.partial(
            self.open,
            model,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            enable_prefix_caching=self.prefix_caching,
            count_experts=self.count_experts,
            kv_cache_memory=None if self.kv_cache_mib is None else self.kv_cache_mib * 2**20,
            moves=moves,
            **self.tiers(),
        )
