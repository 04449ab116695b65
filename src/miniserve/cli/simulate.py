"""`miniserve simulate`: the engine's own scheduler on hardware from the catalogue, under a virtual clock."""

import random
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from miniserve.cli.results import AsJson, Out, give
from miniserve.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from miniserve.simulate.cluster import Cluster
    from miniserve.workloads.arrivals import Arrival

DEFAULT_REQUESTS = 256


def simulate(
    model: Annotated[str, typer.Option("--model", "-m", help="A published one, or a directory with config.json.")],
    hardware: Annotated[str, typer.Option(help="An accelerator of `miniserve hardware`.")],
    tensor_parallel_size: Annotated[int, typer.Option("--tensor-parallel-size", "--tp", min=1)] = 1,
    engines: Annotated[int, typer.Option(help="Engines, or those that decode beside --prefill-engines.", min=1)] = 1,
    prefill_engines: Annotated[int, typer.Option(help="Engines for prompts alone; 0: aggregated.", min=0)] = 0,
    prefill_tensor_parallel_size: Annotated[
        int | None, typer.Option("--prefill-tensor-parallel-size", "--prefill-tp", min=1)
    ] = None,
    weights: Annotated[str, typer.Option(help="bf16, fp8, fp8_block, nvfp4, …")] = "bf16",
    kv: Annotated[str | None, typer.Option(help="Of keys and values; default: the activations'.")] = None,
    router: Annotated[str, typer.Option(help="round-robin, least-loaded or kv-aware.")] = "least-loaded",
    rate: Annotated[float | None, typer.Option(help="Requests a second, Poisson.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="So many users, each asking again at once.", min=1)] = None,
    trace: Annotated[Path | None, typer.Option(help="An Azure or Mooncake trace.", exists=True, dir_okay=False)] = None,
    workload: Annotated[
        str | None, typer.Option(help="Synthetic: azure-conv, azure-code, chat, agentic or rag, at --rate or its own.")
    ] = None,
    trace_speed: Annotated[float, typer.Option(help="How much faster than recorded.")] = 1.0,
    input_len: Annotated[str, typer.Option(help="Tokens: N, LOW-HIGH, or MEDIAN/P90 (log-normal).")] = "1024",
    output_len: Annotated[str, typer.Option(help="The same, of the output.")] = "256",
    warmup: Annotated[int | None, typer.Option(help="Not counted; default: --concurrency, or none.", min=0)] = None,
    num_requests: Annotated[int | None, typer.Option(help="Default: 256, or a trace's all.", min=1)] = None,
    slo: Annotated[str | None, typer.Option(help="Limits in ms of ttft, itl, tpot, e2e: ttft:500,itl:50.")] = None,
    link_gbytes_per_s: Annotated[float, typer.Option(help="Of each prefill engine's KV.")] = 50.0,
    max_num_seqs: Annotated[int, typer.Option(min=1)] = 256,
    max_num_batched_tokens: Annotated[int, typer.Option(min=1)] = 2048,
    block_size: Annotated[int, typer.Option(help="Tokens of a KV block.", min=1)] = 64,
    overhead_ms: Annotated[float, typer.Option(help="Of each step, besides its operators.", min=0)] = 0.0,
    price: Annotated[str, typer.Option(help="Which of the catalogue's prices an hour.")] = "hyperscaler_tco",
    seed: Annotated[int, typer.Option(help="Of lengths and arrivals.")] = 0,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Latencies, throughput, cost and use of a cluster that need not exist. Nothing of it is measured."""
    from miniserve.core.routing import ROUTERS
    from miniserve.hardware.catalog import load_catalog
    from miniserve.hardware.shape import Parallel, Precision
    from miniserve.simulate.cluster import Cluster
    from miniserve.simulate.deployment import Deployment, efficiency_for
    from miniserve.simulate.models import shape_by_name
    from miniserve.simulate.report import check_price, report
    from miniserve.simulate.storage import Link
    from miniserve.workloads.arrivals import Lengths, arrival_times, drawn
    from miniserve.workloads.presets import preset
    from miniserve.workloads.service import SLO
    from miniserve.workloads.traces import origin, read_trace

    if router not in ROUTERS:
        raise InvalidRequestError(f"router '{router}' is not one of {', '.join(ROUTERS)}")
    if sum(given is not None for given in (rate, concurrency, trace)) > 1 or (workload and (trace or concurrency)):
        raise InvalidRequestError("give one of --rate, --concurrency and --trace; --workload goes with --rate")
    device = load_catalog().accelerator(hardware)
    check_price(price, device)
    efficiency = efficiency_for(device)

    def deployment(tensor: int) -> Deployment:
        return Deployment(
            device, shape_by_name(model), Precision.of(weights, kv), Parallel(tensor=tensor), efficiency,
            block_size=block_size, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens,
            overhead_s=overhead_ms / 1000,
        )  # fmt: skip

    cluster = Cluster(
        deployment(tensor_parallel_size),
        engines,
        router=ROUTERS[router](),
        slo=SLO.parse(slo) if slo else SLO(),
        prefill=deployment(prefill_tensor_parallel_size or tensor_parallel_size),
        prefill_engines=prefill_engines,
        make_link=lambda: Link(link_gbytes_per_s * 1e9, 1e-4),
        prefix_caching=bool(trace or workload),
    )
    asked: dict[str, Any]
    arrivals: Iterator[Arrival]
    rng = random.Random(seed)
    if trace:
        asked, arrivals = origin(trace), read_trace(trace, speed=trace_speed)
    elif workload:
        asked, arrivals = {"name": workload, "rate_per_s": rate, "seed": seed}, preset(workload, rng, rate)
        num_requests = num_requests or DEFAULT_REQUESTS
    else:
        times = None if rate is None else arrival_times(rate, rng)
        asked = {"input": input_len, "output": output_len, "rate_per_s": rate, "seed": seed}
        arrivals = drawn(Lengths.parse(input_len), Lengths.parse(output_len), rng, times)
        num_requests = num_requests or DEFAULT_REQUESTS
    warmup = warmup if warmup is not None else concurrency or 0
    counted = num_requests if concurrency else None  # others end with the last arrival, and all turns after it
    if num_requests is not None:
        arrivals = islice(arrivals, warmup + num_requests + (concurrency or 0))
    _run(cluster, arrivals, concurrency, warmup, counted)
    data = {
        "label": "simulated",
        "model": model,
        "hardware": device.key,
        "kernels": f"fitted to timings on {efficiency.name}" if efficiency.curves else "the roofline: a lower bound",
        "weights": weights,
        "tensor": tensor_parallel_size,
        "engines": engines,
        "prefill_engines": prefill_engines,
        "router": router,
        "concurrency": concurrency,
        "workload": asked,
        **report(cluster, price),
    }
    give(data, as_json, out, _table, simulated=device.name)


def _run(
    cluster: "Cluster", arrivals: "Iterator[Arrival]", concurrency: int | None, warmup: int, counted: int | None
) -> None:
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("simulating: {task.completed:,} requests, {task.fields[hours]:.2f} h"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("", total=None, hours=0.0)
        cluster.run(
            arrivals,
            concurrency=concurrency,
            warmup=warmup,
            counted=counted,
            progress=lambda done: shown.update(task, completed=done, hours=cluster.now_s / 3600),
        )


def _table(data: dict[str, Any]) -> Table:
    split = f"{data['prefill_engines']} prefill + " if data["prefill_engines"] else ""
    title = (
        f"Simulated: {data['model']} in {data['weights']}, {split}{data['engines']} engines of {data['tensor']} × "
        f"{data['hardware']}; kernels {data['kernels']}"
    )
    table = Table("", "mean", "p50", "p90", "p99", "max", title=title, title_justify="left")
    for name in ("ttft_s", "itl_s", "tpot_s", "e2e_s"):
        if spread := data[name]:
            table.add_row(f"{name[:-2].upper()}, ms", *(f"{value * 1000:,.1f}" for value in spread.values()))
    table.add_section()
    rows = {
        "requests": f"{data['completed']:,} in {data['seconds']:,.1f} s, {data['requests_per_s']:.2f} a second",
        "output tokens": f"{data['output_tokens_per_s']:,.0f} a second, "
                         f"{data['output_tokens_per_s_device']:,.0f} a device",
        "prompt tokens cached": f"{data['cached_share']:.1%}",
        "met the SLO": f"{data['slo_attainment']:.1%}" if data["slo_attainment"] is not None else "none",
    }  # fmt: skip
    for name, key, form in (
        ("tokens a second and user", "tokens_per_s_user", "{:.0f}"),
        ("tokens a second and MW", "output_tokens_per_s_megawatt", "{:,.0f}"),
        ("$ per million output tokens", "usd_per_million_output_tokens", "{:.2f}"),
    ):
        if data.get(key) is not None:
            rows[name] = form.format(data[key])
    busy = list(data["utilisation"].values())
    rows["busy"] = f"{min(busy):.0%} to {max(busy):.0%} of the time" if busy else "never"
    if data["rejected"]:
        rows["rejected"] = "; ".join(f"{number}: {reason}" for reason, number in data["rejected"].items())
    for name, text in rows.items():
        table.add_row(name, text)
    return table
