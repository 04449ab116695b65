"""`miniserve serve`: the OpenAI-compatible server."""

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from miniserve.cli.engine_options import EngineOptions
from miniserve.cli.fleet_options import FleetOptions
from miniserve.cli.loading import MODEL_HELP
from miniserve.cli.monitor_options import MonitorOptions
from miniserve.cli.option_tables import with_tables
from miniserve.cli.version_options import VersionOptions
from miniserve.errors import InvalidRequestError, MiniserveError

KEY_VARIABLE = "MINISERVE_API_KEY"
MODEL = "smollm2"


@with_tables(fleet=FleetOptions, versions=VersionOptions, monitor=MonitorOptions, engine=EngineOptions)
def serve(
    model: Annotated[str | None, typer.Argument(help=f"{MODEL_HELP} Default: {MODEL}.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8000,
    served_model_name: Annotated[str | None, typer.Option(help="What requests call it; default: MODEL.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar=KEY_VARIABLE, help="A key that requests must have.", show_envvar=True)
    ] = None,
    api_keys_file: Annotated[Path | None, typer.Option(help="TOML: a table a tenant, with its key's sha256.")] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="PEM: the certificate, and those that signed it; with --tls-key: https.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM: its private key, which only the owner may read.")] = None,
    max_waiting: Annotated[int, typer.Option(help="Outputs that may wait; more are refused (429).", min=0)] = 256,
    max_body_mib: Annotated[int, typer.Option(help="Largest body of a request.", min=1)] = 16,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Origin whose pages may use the API from a browser; *: any.")
    ] = None,
    live_view: Annotated[bool, typer.Option(help="A page at / that shows the engine at work.")] = True,
    drain_seconds: Annotated[float, typer.Option(help="How long requests may go on after SIGTERM.", min=0)] = 30.0,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    *,
    fleet: FleetOptions,
    versions: VersionOptions,
    monitor: MonitorOptions,
    engine: EngineOptions,
) -> None:
    """Serve a model over HTTP as the OpenAI API does."""
    try:
        from miniserve.server.access import Access, Tenant, tenant_of
        from miniserve.server.app import ServerSettings
        from miniserve.server.keys_file import read_keys
        from miniserve.server.logs import set_up_logs
        from miniserve.server.reload import Reloads, Source
        from miniserve.server.run import bind, run_server
        from miniserve.server.tls import Certificate
        from miniserve.server.traces import provider_from_environment
    except ImportError as error:
        raise MiniserveError(f"the server needs {error.name}: pip install 'miniserve[serve]'") from error
    if log_level not in ("debug", "info", "warning", "error"):
        raise InvalidRequestError(f"log_level '{log_level}' is not one of debug, info, warning, error")
    for origin in allow_origin or ():
        if not re.fullmatch(r"\*|https?://[^/\s]+", origin):
            raise InvalidRequestError(f"allow_origin '{origin}' is neither * nor an origin such as https://example.org")
    if versions.models is not None and model is not None:
        raise InvalidRequestError(f"there is MODEL '{model}' and --models '{versions.models}': it must be one of them")
    if versions.models is not None and engine.kv_cache_mib is None:
        raise InvalidRequestError("versions share the memory: --kv-cache-mib must say how much each may take")
    if (tls_cert is None) != (tls_key is None):
        raise InvalidRequestError("--tls-cert goes with --tls-key: a certificate and its private key")
    os.environ.pop(KEY_VARIABLE, None)  # the engine's process has no business with it
    own = [] if api_key is None else [tenant_of("api-key", api_key)]

    def tenants() -> list[Tenant]:
        return own + (read_keys(api_keys_file) if api_keys_file else [])

    access, control = Access(tenants()), versions.control()
    certificate = Certificate(tls_cert, tls_key) if tls_cert and tls_key else None
    sources = []
    if api_keys_file:
        sources.append(Source("API keys", lambda: access.replace(tenants()), api_keys_file))
    if control and (file := versions.admin_keys_file):
        sources.append(Source("admin keys", lambda: control.access.replace(read_keys(file)), file))
    if certificate:
        sources.append(Source("certificate", certificate.reload))
    set_up_logs(log_level)
    run_server(
        versions.lineup(model or MODEL, fleet.maker(engine, max_waiting), served_as=served_model_name),
        ServerSettings(
            max_body_mib * 2**20,
            tuple(allow_origin or ()),
            provider_from_environment(),
            live_view,
            monitor.ledger(),
        ),
        access,
        bind(host, port),
        drain_s=drain_seconds,
        control=control,
        certificate=certificate,
        reloads=Reloads(sources) if sources else None,
    )
