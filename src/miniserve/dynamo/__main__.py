"""`python -m miniserve.dynamo`: a worker for NVIDIA Dynamo."""

from typing import Annotated, Literal

import typer

from miniserve.cli.engine_options import EngineOptions
from miniserve.cli.loading import ModelOption
from miniserve.cli.option_tables import with_tables
from miniserve.dynamo import HOW_TO_INSTALL
from miniserve.dynamo.command import run
from miniserve.errors import MiniserveError
from miniserve.server.engine_client import EngineClient


@with_tables(engine=EngineOptions)
def worker(
    model: ModelOption = "smollm2",
    served_model_name: Annotated[str | None, typer.Option(help="What requests call it; default: MODEL.")] = None,
    disaggregation_mode: Annotated[
        Literal["agg", "prefill", "decode"], typer.Option(help="Whole requests, or one part of them.")
    ] = "agg",
    kv_transfer: Annotated[
        Literal["shared-memory", "nixl"], typer.Option(help="How KV gets from prefill to decode: on one host, or any.")
    ] = "shared-memory",
    namespace: Annotated[
        str | None, typer.Option(help="Of the deployment; default: DYN_NAMESPACE's, or dynamo.")
    ] = None,
    component: Annotated[str | None, typer.Option(help="Default: backend, or prefill.")] = None,
    discovery_backend: Annotated[str, typer.Option(envvar="DYN_DISCOVERY_BACKEND", help="etcd, file, …")] = "etcd",
    request_plane: Annotated[str, typer.Option(envvar="DYN_REQUEST_PLANE", help="tcp, nats, …")] = "tcp",
    event_plane: Annotated[str, typer.Option(envvar="DYN_EVENT_PLANE", help="zmq or nats.")] = "zmq",
    max_waiting: Annotated[int, typer.Option(help="Requests that may wait; more are sent elsewhere.", min=0)] = 256,
    *,
    engine: EngineOptions,
) -> None:
    """Serve a model as a worker of NVIDIA Dynamo. Its frontend, started apart, speaks HTTP."""
    try:
        from miniserve.dynamo.worker import serve
    except ImportError as error:
        raise MiniserveError(f"a Dynamo worker needs {error.name}: {HOW_TO_INSTALL}") from error
    from miniserve.dynamo.model_directory import model_directory

    opener = engine.opener(model, moves=None if disaggregation_mode == "agg" else kv_transfer)
    serve(
        EngineClient(opener, max_waiting=max_waiting, silence_s=engine.silence_seconds),
        model_directory(model),
        served_model_name or model,
        disaggregation_mode,
        namespace=namespace,
        component=component,
        discovery_backend=discovery_backend,
        request_plane=request_plane,
        event_plane=event_plane,
    )


if __name__ == "__main__":
    run(worker)
