"""`miniserve bench serve`: load on an OpenAI-compatible server, ours or another."""

import json
import math
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from miniserve.cli.results import AsJson, Out, give, progress
from miniserve.errors import InvalidRequestError, MiniserveError

if TYPE_CHECKING:
    from miniserve.bench.serving.client import Client
    from miniserve.bench.serving.prompts import MakePrompt
    from miniserve.bench.serving.spec import LoadSpec

DEFAULT_CONCURRENCY = 8
DEFAULT_REQUESTS = 64


def serve(
    url: Annotated[str | None, typer.Option(help="An API, such as http://host:8000/v1; default: start one.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="To start (default smollm2), or as the API at --url names it.")
    ] = None,
    serve_options: Annotated[str, typer.Option(help="For the server that is started, as one argument.")] = "",
    endpoint: Annotated[str, typer.Option(help="completions or chat.")] = "completions",
    api_key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="Sent with each request.")] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Closed loop: so many users, each asking again at once. Default: 8.", min=1)
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Open loop: so many requests a second arrive.")] = None,
    cv: Annotated[float, typer.Option(help="Of the gaps between them: 1 Poisson, 0 even, more: bursts.")] = 1.0,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Open loop: arrivals of an Azure (CSV) or Mooncake (JSONL) trace.", exists=True, dir_okay=False
        ),
    ] = None,
    trace_speed: Annotated[float, typer.Option(help="How much faster than recorded.")] = 1.0,
    input_len: Annotated[str, typer.Option(help="Tokens: N, LOW-HIGH, or MEDIAN/P90 (log-normal).")] = "128",
    output_len: Annotated[str, typer.Option(help="The same, of the output.")] = "64",
    num_requests: Annotated[
        int | None, typer.Option(help="Default: 64, a trace's all, any number with --duration.", min=1)
    ] = None,
    duration: Annotated[float | None, typer.Option(help="Seconds after which no more are sent.")] = None,
    warmup: Annotated[int, typer.Option(help="Requests before, not counted.", min=0)] = 4,
    slo: Annotated[
        str | None, typer.Option(help="For goodput: limits in ms of ttft, itl, tpot, e2e, as in ttft:500,itl:50.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of lengths, arrivals and prompts.")] = 0,
    vocab_size: Annotated[
        int | None, typer.Option(help="Prompts of token ids below this, not of words (completions).", min=1)
    ] = None,
    ignore_eos: Annotated[bool, typer.Option(help="Outputs have their full length; an extension of the API.")] = True,
    extra_body: Annotated[str, typer.Option(help="JSON object: more fields for each request.")] = "{}",
    timeout: Annotated[float, typer.Option(help="Seconds after which a request has failed.", min=0.001)] = 600.0,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Put load on an OpenAI-compatible server.

    Percentiles of TTFT, ITL, TPOT and end-to-end latency, throughput, errors by kind, goodput.

    In an open loop, latencies count from when a request was due, whenever it was sent.
    """
    import asyncio

    from rich.console import Console

    try:
        from miniserve.bench.serving.client import PATHS, Client
        from miniserve.bench.serving.own_server import own_server
        from miniserve.bench.serving.own_server import vocab_size as vocab_size_of
    except ImportError as error:
        raise MiniserveError(f"this benchmark needs {error.name}: pip install 'miniserve[bench]'") from error
    from miniserve.bench.serving.prompts import token_prompts, word_prompts
    from miniserve.bench.serving.spec import LoadSpec
    from miniserve.cli.bench_tables import serving as table
    from miniserve.workloads.arrivals import Lengths
    from miniserve.workloads.service import SLO

    if endpoint not in PATHS:
        raise InvalidRequestError(f"endpoint '{endpoint}' is not one of {', '.join(PATHS)}")
    if vocab_size is not None and endpoint == "chat":
        raise InvalidRequestError("vocab_size is for the endpoint completions: a chat's messages are text")
    if serve_options and url is not None:
        raise InvalidRequestError("serve_options are for a server that is started: there is a url")
    closed = rate is None and trace is None
    spec = LoadSpec(
        concurrency=concurrency or (DEFAULT_CONCURRENCY if closed else None),
        rate_per_s=rate,
        cv=cv,
        trace=trace,
        speed=trace_speed,
        prompts=Lengths.parse(input_len),
        outputs=Lengths.parse(output_len),
        num_requests=num_requests or (None if trace or duration else DEFAULT_REQUESTS),
        duration_s=math.inf if duration is None else duration,
        warmup=warmup,
        seed=seed,
        slo=None if slo is None else SLO.parse(slo),
    )
    body: dict[str, Any] = {"temperature": 0, **_fields(ignore_eos), **_object(extra_body)}
    with ExitStack() as stack:
        started = url is None
        if url is None:
            served = model or "smollm2"
            if endpoint == "completions" and vocab_size is None:
                vocab_size = vocab_size_of(served)
            with Console(stderr=True).status(f"starting a server of {served}"):
                url = stack.enter_context(own_server(served, shlex.split(serve_options)))
        make_prompt = word_prompts(seed) if vocab_size is None else token_prompts(vocab_size, seed)
        name = None if started else model
        client = Client(url, endpoint=endpoint, model=name, body=body, api_key=api_key, timeout_s=timeout)
        data = asyncio.run(_run(client, spec, make_prompt))
    about = {
        "url": None if started else url,
        "serve_options": serve_options,
        "model": client.model,
        "endpoint": endpoint,
        "body": body,
        "prompts": "words" if vocab_size is None else f"token ids below {vocab_size}",
    }
    give(about | data, as_json, out, table)


def _fields(ignore_eos: bool) -> dict[str, bool]:
    """What makes outputs as long as asked: beyond their end, too, where tokens have no text unless asked for."""
    return {"ignore_eos": True, "skip_special_tokens": False} if ignore_eos else {}


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InvalidRequestError(f"extra_body is not JSON: {error}") from error
    if type(found) is not dict:
        raise InvalidRequestError("extra_body must be a JSON object")
    return found


async def _run(client: "Client", spec: "LoadSpec", make_prompt: "MakePrompt") -> dict[str, Any]:
    """The load, with a line on stderr that says how far it is."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

    from miniserve.bench.serving.run import Progress, run_load

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with progress(*columns) as bar:
        task = bar.add_task("warming up", total=spec.num_requests)

        def report(now: Progress) -> None:
            rate = now.output_tokens / max(bar.tasks[task].elapsed or 0.0, 1e-3)
            text = f"{now.open} open, {now.failed} failed, {rate:,.0f} tokens/s"
            bar.update(task, completed=now.ended, description=text)

        async with client:
            return await run_load(client, spec, make_prompt, report)
