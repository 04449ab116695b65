"""`miniserve serve`: the OpenAI-compatible server."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from miniserve.cli.engine_options import EngineOptions, with_engine_options
from miniserve.core.disaggregation import MIN_TOKENS, Disaggregation
from miniserve.core.routing import ROUTERS
from miniserve.core.scaling import Counts, Planner
from miniserve.errors import InvalidRequestError, MiniserveError
from miniserve.hardware.this_machine import num_cores

KEY_VARIABLE = "MINISERVE_API_KEY"


@with_engine_options
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
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Origin whose pages may use the API from a browser; *: any.")
    ] = None,
    live_view: Annotated[bool, typer.Option(help="A page at / that shows the engine at work.")] = True,
    drain_seconds: Annotated[float, typer.Option(help="How long requests may go on after SIGTERM.", min=0)] = 30.0,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    prefill: Annotated[
        str, typer.Option(help="Engines that compute prompts alone, apart from those that decode: N, or LOW-HIGH.")
    ] = "0",
    decode: Annotated[
        str, typer.Option(help="Engines that decode, N or LOW-HIGH; with --prefill 0 they do all.")
    ] = "1",
    capacity: Annotated[
        str | None,
        typer.Option(help="Of one engine, for LOW-HIGH: prompt tokens/s, outputs at once, ms a token: 2000:8:40."),
    ] = None,
    plan_seconds: Annotated[
        float, typer.Option(help="How often it is planned how many of LOW-HIGH engines run.", min=0.1)
    ] = 30.0,
    prefill_from: Annotated[
        int, typer.Option(help="A prompt with fewer tokens to compute stays where it is decoded.", min=0)
    ] = MIN_TOKENS,
    router: Annotated[
        str, typer.Option(help="Who of several engines gets a request: round-robin, least-loaded or kv-aware.")
    ] = "kv-aware",
    transfer: Annotated[str, typer.Option(help="How KV moves: shared-memory or nixl.")] = "shared-memory",
    *,
    engine: EngineOptions,
) -> None:
    """Serve a model over HTTP as the OpenAI API does."""
    try:
        from miniserve.server.access import Access, read_keys, tenant_of
        from miniserve.server.app import ServerSettings
        from miniserve.server.backend import Backend
        from miniserve.server.engine_client import EngineClient
        from miniserve.server.fleet.fleet import Fleet
        from miniserve.server.fleet.launcher import Launcher, parse_capacity, parse_range
        from miniserve.server.logs import set_up_logs
        from miniserve.server.rollout.lineup import Lineup
        from miniserve.server.rollout.version import Version
        from miniserve.server.run import bind, run_server
        from miniserve.server.traces import provider_from_environment
    except ImportError as error:
        raise MiniserveError(f"the server needs {error.name}: pip install 'miniserve[serve]'") from error
    if log_level not in ("debug", "info", "warning", "error"):
        raise InvalidRequestError(f"log_level '{log_level}' is not one of debug, info, warning, error")
    for origin in allow_origin or ():
        if not re.fullmatch(r"\*|https?://[^/\s]+", origin):
            raise InvalidRequestError(f"allow_origin '{origin}' is neither * nor an origin such as https://example.org")
    if router not in ROUTERS:
        raise InvalidRequestError(f"router '{router}' is not one of {', '.join(ROUTERS)}")
    os.environ.pop(KEY_VARIABLE, None)  # the engine's process has no business with it
    tenants = read_keys(api_keys_file) if api_keys_file else []
    if api_key is not None:
        tenants.append(tenant_of("api-key", api_key))
    set_up_logs(log_level)
    (few_prefill, most_prefill), (few_decode, most_decode) = parse_range(prefill, 0), parse_range(decode, 1)
    least, most = Counts(few_prefill, few_decode), Counts(most_prefill, most_decode)
    engines = sum(most)
    if (least != most) != (capacity is not None):
        raise InvalidRequestError("a number of engines from LOW to HIGH goes with --capacity: what one of them can do")
    if engines > 1 and engine.kv_cache_mib is None:
        raise InvalidRequestError(f"{engines} engines share the memory: --kv-cache-mib must say how much each may take")
    if engines > 1 and engine.threads is None:
        engine = replace(engine, threads=max(num_cores() // engines, 1))
    opener = engine.opener(model, moves=transfer if engines > 1 else None)
    # Of a fleet any engine may have to take all that the fleet takes.
    own = max_waiting if engines == 1 else max_waiting + most.decode * engine.max_num_seqs

    def client() -> EngineClient:
        return EngineClient(opener, max_waiting=own, silence_s=engine.silence_seconds)

    rule, make_router = Disaggregation(prefill_from), ROUTERS[router]
    one = parse_capacity(capacity) if capacity is not None else None

    def backend() -> Backend:
        if engines == 1:
            return client()
        return Fleet(
            [client() for _ in range(least.prefill)],
            [client() for _ in range(least.decode)],
            max_waiting=max_waiting,
            rule=rule,
            prefill_router=make_router(),
            decode_router=make_router(),
            launcher=Launcher(Planner(lambda _: one, least, most), client, plan_seconds) if one else None,
        )

    run_server(
        Lineup(served_model_name or model, [Version("", backend)]),
        ServerSettings(
            max_body_mib * 2**20,
            tuple(allow_origin or ()),
            provider_from_environment(),
            live_view,
        ),
        Access(tenants),
        bind(host, port),
        drain_s=drain_seconds,
    )
