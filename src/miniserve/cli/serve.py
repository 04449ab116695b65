"""`miniserve serve`: the OpenAI-compatible server."""

import functools
import os
import re
from pathlib import Path
from typing import Annotated

import typer

from miniserve.cli.loading import (
    BackendOption,
    DeviceOption,
    DtypeOption,
    KVCacheDtypeOption,
    KVCompressOption,
    KVDiskMibOption,
    KVDiskOption,
    KVHostOption,
    QuantizationOption,
    SpeculationOption,
    TensorParallelOption,
    ThreadsOption,
    open_llm,
)
from miniserve.core.disaggregation import MIN_TOKENS, Disaggregation
from miniserve.errors import InvalidRequestError, MiniserveError
from miniserve.hardware.this_machine import num_cores

KEY_VARIABLE = "MINISERVE_API_KEY"


def serve(
    model: Annotated[str, typer.Argument(help="Alias, directory, .gguf file, or org/name.")] = "smollm2",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8000,
    served_model_name: Annotated[str | None, typer.Option(help="What requests call it; default: MODEL.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar=KEY_VARIABLE, help="A key that requests must have.", show_envvar=True)
    ] = None,
    api_keys_file: Annotated[Path | None, typer.Option(help="TOML: a table a tenant, with its key's sha256.")] = None,
    max_waiting: Annotated[int, typer.Option(help="Outputs that may wait; more are refused (429).", min=0)] = 256,
    max_body_mib: Annotated[int, typer.Option(help="Largest body of a request.", min=1)] = 16,
    silence_seconds: Annotated[
        float, typer.Option(help="An engine whose step takes longer is taken for hung and started again.", min=1)
    ] = 600.0,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Origin whose pages may use the API from a browser; *: any.")
    ] = None,
    live_view: Annotated[bool, typer.Option(help="A page at / that shows the engine at work.")] = True,
    drain_seconds: Annotated[float, typer.Option(help="How long requests may go on after SIGTERM.", min=0)] = 30.0,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    max_model_len: Annotated[int | None, typer.Option(help="Most tokens of one request.")] = None,
    max_num_seqs: Annotated[int, typer.Option(help="Most outputs computed at once.")] = 64,
    max_num_batched_tokens: Annotated[int | None, typer.Option(help="Most tokens computed in a step.")] = None,
    kv_cache_mib: Annotated[
        int | None, typer.Option(help="Memory for the KV cache; default: a share of what is free.", min=1)
    ] = None,
    prefix_caching: Annotated[bool, typer.Option(help="Share KV blocks between prompts that begin alike.")] = True,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    quantization: QuantizationOption = "auto",
    kv_cache_dtype: KVCacheDtypeOption = "auto",
    kv_host_mib: KVHostOption = None,
    kv_disk: KVDiskOption = None,
    kv_disk_mib: KVDiskMibOption = None,
    kv_compress: KVCompressOption = "none",
    speculation: SpeculationOption = None,
    threads: ThreadsOption = None,
    tensor_parallel_size: TensorParallelOption = 1,
    prefill: Annotated[
        int, typer.Option(help="Engines that compute prompts alone, apart from those that decode.", min=0)
    ] = 0,
    decode: Annotated[int, typer.Option(help="Engines that decode; with --prefill 0 they do all.", min=1)] = 1,
    prefill_from: Annotated[
        int, typer.Option(help="A prompt with fewer tokens to compute stays where it is decoded.", min=0)
    ] = MIN_TOKENS,
    transfer: Annotated[str, typer.Option(help="How KV moves: shared-memory or nixl.")] = "shared-memory",
) -> None:
    """Serve a model over HTTP as the OpenAI API does."""
    try:
        from miniserve.server.access import Access, read_keys, tenant_of
        from miniserve.server.app import ServerSettings
        from miniserve.server.engine_client import EngineClient
        from miniserve.server.fleet.fleet import Fleet
        from miniserve.server.logs import set_up_logs
        from miniserve.server.run import bind, run_server
        from miniserve.server.traces import provider_from_environment
    except ImportError as error:
        raise MiniserveError(f"the server needs {error.name}: pip install 'miniserve[serve]'") from error
    if log_level not in ("debug", "info", "warning", "error"):
        raise InvalidRequestError(f"log_level '{log_level}' is not one of debug, info, warning, error")
    for origin in allow_origin or ():
        if not re.fullmatch(r"\*|https?://[^/\s]+", origin):
            raise InvalidRequestError(f"allow_origin '{origin}' is neither * nor an origin such as https://example.org")
    os.environ.pop(KEY_VARIABLE, None)  # the engine's process has no business with it
    tenants = read_keys(api_keys_file) if api_keys_file else []
    if api_key is not None:
        tenants.append(tenant_of("api-key", api_key))
    set_up_logs(log_level)
    engines = prefill + decode
    if engines > 1 and kv_cache_mib is None:
        raise InvalidRequestError(f"{engines} engines share the memory: --kv-cache-mib must say how much each may take")
    if engines > 1 and threads is None:
        threads = max(num_cores() // engines, 1)
    how = {"dtype": dtype, "device": device, "backend": backend, "quantization": quantization, "threads": threads}
    opener = functools.partial(
        open_llm,
        model,
        how,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        enable_prefix_caching=prefix_caching,
        kv_cache_memory=None if kv_cache_mib is None else kv_cache_mib * 2**20,
        kv_cache_dtype=kv_cache_dtype,
        kv_host_mib=kv_host_mib,
        kv_disk_dir=kv_disk,
        kv_disk_mib=kv_disk_mib,
        kv_compress=kv_compress,
        speculation=speculation,
        tensor_parallel_size=tensor_parallel_size,
        moves=transfer if engines > 1 else None,
    )
    # Of a fleet any engine may have to take all that the fleet takes.
    own = max_waiting if engines == 1 else max_waiting + decode * max_num_seqs
    clients = [EngineClient(opener, max_waiting=own, silence_s=silence_seconds) for _ in range(engines)]
    rule = Disaggregation(prefill_from)
    run_server(
        clients[0] if engines == 1 else Fleet(clients[:prefill], clients[prefill:], max_waiting=max_waiting, rule=rule),
        ServerSettings(
            served_model_name or model,
            max_body_mib * 2**20,
            tuple(allow_origin or ()),
            provider_from_environment(),
            live_view,
        ),
        Access(tenants),
        bind(host, port),
        drain_s=drain_seconds,
    )
