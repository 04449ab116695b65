"""`python -m miniserve.dynamo`: a worker for NVIDIA Dynamo."""

import functools
import logging
import sys
from typing import Annotated, Literal

import typer

from miniserve.cli.loading import (
    BackendOption,
    DeviceOption,
    DtypeOption,
    KVCacheDtypeOption,
    ModelOption,
    QuantizationOption,
    TensorParallelOption,
    ThreadsOption,
    open_llm,
)
from miniserve.errors import MiniserveError
from miniserve.server.engine_client import EngineClient


def worker(
    model: ModelOption = "smollm2",
    served_model_name: Annotated[str | None, typer.Option(help="What requests call it; default: MODEL.")] = None,
    disaggregation_mode: Annotated[
        Literal["agg", "prefill", "decode"], typer.Option(help="Whole requests, or one part of them.")
    ] = "agg",
    kv_transfer: Annotated[
        Literal["shared-memory", "nixl"], typer.Option(help="How KV gets from prefill to decode: on one host, or any.")
    ] = "shared-memory",
    namespace: Annotated[str, typer.Option(help="Of the deployment, as Dynamo has it.")] = "dynamo",
    component: Annotated[str | None, typer.Option(help="Default: backend, or prefill.")] = None,
    discovery_backend: Annotated[str, typer.Option(envvar="DYN_DISCOVERY_BACKEND", help="etcd, file, …")] = "etcd",
    request_plane: Annotated[str, typer.Option(envvar="DYN_REQUEST_PLANE", help="tcp, nats, …")] = "tcp",
    event_plane: Annotated[str, typer.Option(envvar="DYN_EVENT_PLANE", help="zmq or nats.")] = "zmq",
    max_waiting: Annotated[int, typer.Option(help="Requests that may wait; more are sent elsewhere.", min=0)] = 256,
    silence_seconds: Annotated[
        float, typer.Option(help="An engine whose step takes longer is taken for hung and started again.", min=1)
    ] = 600.0,
    max_model_len: Annotated[int | None, typer.Option(help="Most tokens of one request.")] = None,
    max_num_seqs: Annotated[int, typer.Option(help="Most requests computed at once.")] = 64,
    max_num_batched_tokens: Annotated[int | None, typer.Option(help="Most tokens computed in a step.")] = None,
    kv_cache_mib: Annotated[
        int | None, typer.Option(help="Memory for the KV cache; default: a share of what is free.", min=1)
    ] = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    quantization: QuantizationOption = "auto",
    kv_cache_dtype: KVCacheDtypeOption = "auto",
    threads: ThreadsOption = None,
    tensor_parallel_size: TensorParallelOption = 1,
) -> None:
    """Serve a model as a worker of NVIDIA Dynamo. Its frontend, started apart, speaks HTTP."""
    try:
        from miniserve.dynamo.worker import serve
    except ImportError as error:
        raise MiniserveError(f"a Dynamo worker needs {error.name}: pip install 'miniserve[dynamo]'") from error
    from miniserve.dynamo.model_directory import model_directory

    how = {"dtype": dtype, "device": device, "backend": backend, "quantization": quantization, "threads": threads}
    opener = functools.partial(
        open_llm,
        model,
        how,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        kv_cache_memory=None if kv_cache_mib is None else kv_cache_mib * 2**20,
        kv_cache_dtype=kv_cache_dtype,
        tensor_parallel_size=tensor_parallel_size,
        moves=None if disaggregation_mode == "agg" else kv_transfer,
    )
    serve(
        EngineClient(opener, max_waiting=max_waiting, silence_s=silence_seconds),
        model_directory(model),
        served_model_name or model,
        disaggregation_mode,
        namespace=namespace,
        component=component,
        discovery_backend=discovery_backend,
        request_plane=request_plane,
        event_plane=event_plane,
    )


def main() -> None:
    """Run it; an expected error is one line."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        typer.run(worker)
    except MiniserveError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
