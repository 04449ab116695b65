"""`miniserve plan`: which deployment to take, found by simulating those that could do."""

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
    from collections.abc import Sequence

    from miniserve.simulate.plan import Outcome, Planner
    from miniserve.workloads.arrivals import Arrival

DRAWN = 1024  # requests, or as many of a trace: the load repeats after them


def plan(
    model: Annotated[str, typer.Option("--model", "-m", help="A published one, or a directory with config.json.")],
    hardware: Annotated[str, typer.Option(help="An accelerator of `miniserve hardware`.")],
    slo: Annotated[str, typer.Option(help="Limits in ms of ttft, itl, tpot, e2e: ttft:500,tpot:50.")],
    gpus: Annotated[int | None, typer.Option(help="Devices there are.")] = None,
    budget: Annotated[float | None, typer.Option(help="Instead: as many devices as so many $ an hour pay.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Lengths of an Azure or Mooncake trace.", dir_okay=False)] = None,
    input_len: Annotated[str, typer.Option(help="Tokens: N, LOW-HIGH, or MEDIAN/P90 (log-normal).")] = "1024",
    output_len: Annotated[str, typer.Option(help="The same, of the output.")] = "256",
    attainment: Annotated[float, typer.Option(help="Share of requests that must be within the limits.")] = 0.95,
    weights: Annotated[str, typer.Option(help="Formats to try: bf16,fp8_block,…")] = "bf16",
    kv: Annotated[str | None, typer.Option(help="Of keys and values; default: the activations'.")] = None,
    link_gbytes_per_s: Annotated[float, typer.Option(help="Of each prefill engine's KV.")] = 50.0,
    max_num_seqs: Annotated[int, typer.Option(min=1)] = 512,
    max_num_batched_tokens: Annotated[int, typer.Option(min=1)] = 2048,
    block_size: Annotated[int, typer.Option(help="Tokens of a KV block.", min=1)] = 64,
    overhead_ms: Annotated[float, typer.Option(help="Of each step, besides its operators.", min=0)] = 0.0,
    expert_skew: Annotated[
        float | None, typer.Option(help="Exponent of a power law that experts are chosen by.")
    ] = None,
    draft_acceptance: Annotated[str | None, typer.Option(help="A draft head's guesses: 0.8,0.6,… are right.")] = None,
    afd: Annotated[bool, typer.Option("--afd", help="Try attention and feed-forward on devices apart, too.")] = False,
    num_requests: Annotated[int, typer.Option(help="That each simulation counts, at least.", min=1)] = 128,
    price: Annotated[str, typer.Option(help="Which of the catalogue's prices an hour.")] = "hyperscaler_tco",
    seed: Annotated[int, typer.Option(help="Of lengths.")] = 0,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """The deployment that serves most within the limits, and why the others lost. Nothing of it is measured."""
    from miniserve.hardware.catalog import load_catalog
    from miniserve.hardware.shape import Precision
    from miniserve.simulate.capacity import Load
    from miniserve.simulate.deployment import Deployment, efficiency_for, kernels_of
    from miniserve.simulate.models import shape_by_name
    from miniserve.simulate.plan import Planner
    from miniserve.simulate.report import check_price
    from miniserve.simulate.speculation import Speculation
    from miniserve.workloads.service import SLO
    from miniserve.workloads.traces import origin

    device = load_catalog().accelerator(hardware)
    check_price(price, device)
    usd_per_hour = device.usd_per_hour[price].value if price in device.usd_per_hour else None
    if (gpus is None) == (budget is None):
        raise InvalidRequestError("give one of --gpus and --budget")
    if budget is not None:
        if usd_per_hour is None:
            raise InvalidRequestError(f"the catalogue has no price of a {device.name}: give --gpus")
        gpus = int(budget // usd_per_hour)
    efficiency = efficiency_for(device)
    template = Deployment(
        device, shape_by_name(model), Precision.of(), efficiency=efficiency, block_size=block_size,
        max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens, overhead_s=overhead_ms / 1000,
        speculation=Speculation.parse(draft_acceptance) if draft_acceptance else None,
    )  # fmt: skip
    limits = SLO.parse(slo)
    load = Load(_requests(trace, input_len, output_len, seed), limits, attainment, num_requests)
    planner = Planner(template, gpus or 0, load, weights.split(","), kv, link_gbytes_per_s * 1e9, expert_skew, afd)
    outcomes = _search(planner)
    data = {
        "label": "simulated",
        "model": model,
        "hardware": device.key,
        "kernels": kernels_of(efficiency, template.shape),
        "devices": gpus,
        "usd_per_device_hour": usd_per_hour,
        "slo": limits.as_dict(),
        "attainment": attainment,
        "load": origin(trace) if trace else {"input": input_len, "output": output_len, "seed": seed},
        "mean_prompt_tokens": load.prompt,
        "mean_output_tokens": load.output,
        "least_s": planner.least(),
        "ranked": [_plain(outcome, planner.num_devices, usd_per_hour) for outcome in outcomes],
    }
    give(data, as_json, out, _table, simulated=device.name)


def _requests(trace: Path | None, input_len: str, output_len: str, seed: int) -> "Sequence[Arrival]":
    from miniserve.workloads.arrivals import Lengths, drawn
    from miniserve.workloads.traces import read_trace

    if not trace:
        return list(islice(drawn(Lengths.parse(input_len), Lengths.parse(output_len), random.Random(seed)), DRAWN))
    requests = list(islice(read_trace(trace), DRAWN))
    if not requests:
        raise InvalidRequestError(f"{trace} has no requests")
    return requests


def _search(planner: "Planner") -> "list[Outcome]":
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("simulating {task.fields[what]}; {task.fields[left]} left"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("", total=None, what="", left="")
        return planner.outcomes(lambda what, left: shown.update(task, what=what, left=left))


def _plain(outcome: "Outcome", devices: int, usd_per_hour: float | None) -> dict[str, Any]:
    """As plain numbers and names."""
    candidate, best = outcome.candidate, outcome.best
    found: dict[str, Any] = {
        "deployment": str(candidate),
        "weights": candidate.weights,
        "prefill": candidate.prefill and candidate.prefill._asdict(),
        "decode": candidate.decode._asdict(),
        "devices_used": candidate.num_devices,
        "limit": outcome.reason,
    }
    if best:
        found |= {
            "users": best.users,
            "attained": best.attained,
            "latencies_s": best.latencies_s,
            "output_tokens_per_s": best.output_tokens_per_s,
            "output_tokens_per_s_device": best.output_tokens_per_s / devices,
            "share_of_time": outcome.share,
        }
        if usd_per_hour is not None:
            found["usd_per_million_output_tokens"] = usd_per_hour * devices / 3600 / best.output_tokens_per_s * 1e6
    return found


def _table(data: dict[str, Any]) -> Table:
    ranked = data["ranked"]
    limits = ", ".join(f"{name[:-2].upper()} {limit * 1000:g} ms" for name, limit in data["slo"].items())
    title = (
        f"Simulated: {data['model']} on {data['devices']} × {data['hardware']}, in {data['mean_prompt_tokens']:,}, out "
        f"{data['mean_output_tokens']:,}, {limits} for {data['attainment']:.0%}; kernels {data['kernels']}"
    )
    table = Table("", "weights", "deployment", "users", "tokens/s\na device", "$/M", title=title, title_justify="left")
    table.add_column("what keeps it from more", overflow="fold")
    for rank, row in enumerate(ranked, 1):
        served = "users" in row
        numbers = (f"{row['users']:,}", f"{row['output_tokens_per_s_device']:,.0f}") if served else ("", "")
        usd = row.get("usd_per_million_output_tokens")
        cost = "" if usd is None else f"{usd:.2f}"
        table.add_row(str(rank) if served else "", row["weights"], row["deployment"], *numbers, cost, row["limit"])
    table.caption, table.caption_justify = _verdict(data), "left"
    return table


def _verdict(data: dict[str, Any]) -> str:
    """The answer in words."""
    first = data["ranked"][0]
    if "users" in first:
        most = list(first["share_of_time"].items())[:3]
        shares = ", ".join(f"{share:.0%} {kind}" for kind, share in most)
        return f"Take {first['deployment']} in {first['weights']}. Its devices' time: {shares}."
    if not data["least_s"]:
        return "No engine can serve even one request, however slowly: see above what it lacks."
    ttft_ms, tpot_ms = (data["least_s"][name] * 1000 for name in ("ttft_s", "tpot_s"))
    return (
        f"Nothing meets the limits. One request alone could have a TTFT of {ttft_ms:,.1f} ms and a TPOT of "
        f"{tpot_ms:.2f} ms at best, each on the engine that is fastest at it."
    )
