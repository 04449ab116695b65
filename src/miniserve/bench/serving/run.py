"""One benchmark of a server: a warm-up, the load, and the figures.

Ctrl-C ends the load and reports what has ended; what was under way is unfinished, neither served nor failed.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from miniserve.bench.serving.client import Client
from miniserve.bench.serving.load import Load, Send
from miniserve.bench.serving.meter import Meter, remarks
from miniserve.bench.serving.prompts import MakePrompt
from miniserve.bench.serving.spec import LoadSpec
from miniserve.errors import MiniserveError
from miniserve.workloads.arrivals import Arrival
from miniserve.workloads.service import Service, summary

WARM_UP_AT_ONCE = 8


@dataclass
class Progress:
    """How far a run is."""

    ended: int = 0
    failed: int = 0
    open: int = 0
    output_tokens: int = 0


async def run_load(
    client: Client, spec: LoadSpec, make_prompt: MakePrompt, report: Callable[[Progress], None] = lambda _: None
) -> dict[str, Any]:
    """Put the load on the server.

    Args:
        client: connected.
        spec: what load.
        make_prompt: the contents.
        report: called at each request's end.

    Raises:
        CorruptFileError: the trace's, as `read_trace` has it.
        MiniserveError: no request of the warm-up succeeded.
    """

    async def send(arrival: Arrival, due_s: float) -> Service:
        return await client.send(make_prompt(arrival), arrival.output_tokens, due_s)

    def done(service: Service) -> None:
        services.append(service)
        so_far.ended += 1
        so_far.failed += service.error is not None
        so_far.open = load.num_open - 1
        so_far.output_tokens += service.output_tokens if service.error is None else 0
        report(so_far)

    arrivals = spec.arrivals()
    await _warm_up(client, spec, send)
    services, so_far, load = list[Service](), Progress(), Load(send, done, spec.duration_s)
    clock, meter = asyncio.get_running_loop().time, Meter()
    interrupted, started_s = False, clock()
    try:
        if spec.concurrency is not None:
            await load.closed(arrivals, spec.concurrency)
        else:
            await load.open(arrivals)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        assert task is not None, "this is a coroutine"
        task.uncancel()  # Ctrl-C: what is known is still to be told
        interrupted = True
    seconds = max(clock() - started_s, 1e-9)
    measured = await meter.stop(services)
    return {
        "load": spec.as_dict(),
        **summary(services, seconds, spec.slo),
        "slo": None if spec.slo is None else spec.slo.as_dict(),
        "interrupted": interrupted,
        "unfinished": load.num_open,
        "client": measured,
        "remarks": _remarks(measured, load.num_open, client.first_errors),
    }


def _remarks(measured: dict[str, Any], unfinished: int, first_errors: dict[str, str]) -> list[str]:
    """What a reader of the figures must know."""
    found = remarks(measured)
    if unfinished:
        found.append(f"{unfinished} requests had not ended when it was interrupted, and are in no figure")
    return found + [f"first of {kind}: {message}" for kind, message in first_errors.items()]


async def _warm_up(client: Client, spec: LoadSpec, send: Send) -> None:
    ended: list[Service] = []
    at_once = min(WARM_UP_AT_ONCE, spec.concurrency or WARM_UP_AT_ONCE)
    await Load(send, ended.append).closed(spec.warm_ups(), at_once)
    if ended and all(service.error for service in ended):
        kind = str(ended[0].error)
        raise MiniserveError(f"no request of the warm-up succeeded: {kind}: {client.first_errors[kind]}")
    client.first_errors.clear()
