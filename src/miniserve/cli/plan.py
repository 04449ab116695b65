"""`miniserve plan`: which deployment to take, found by simulating those that could do."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from miniserve.cli.results import AsJson, Out, give, progress
from miniserve.errors import InvalidRequestError

if TYPE_CHECKING:
    from miniserve.simulate.outcome import Outcome
    from miniserve.simulate.plan import Search


def plan(
    model: Annotated[str, typer.Option("--model", "-m", help="A published one, or a directory with config.json.")],
    hardware: Annotated[str, typer.Option(help="An accelerator of `miniserve hardware`.")],
    slo: Annotated[str, typer.Option(help="Limits in ms of ttft, itl, tpot, e2e: ttft:500,tpot:50.")],
    gpus: Annotated[int | None, typer.Option(help="Devices there are.")] = None,
    budget: Annotated[float | None, typer.Option(help="Instead: as many devices as so many $ an hour pay.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Lengths, and blocks, of an Azure or Mooncake trace.", dir_okay=False)
    ] = None,
    workload: Annotated[
        str | None, typer.Option(help="Synthetic: sessions of agentic, chat or rag, or azure-conv, azure-code.")
    ] = None,
    tiers: Annotated[
        str | None, typer.Option(help="Stacks of KV tiers to try, the nearest first: dram,dram+nvme.")
    ] = None,
    input_len: Annotated[
        str | None, typer.Option(help="Tokens: N, LOW-HIGH, or MEDIAN/P90 (log-normal); default: 1024.")
    ] = None,
    output_len: Annotated[str | None, typer.Option(help="The same, of the output; default: 256.")] = None,
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
    afd: Annotated[
        bool, typer.Option("--afd", help="Try attention and feed-forward on devices apart, too, of the same kind.")
    ] = False,
    ffn_hardware: Annotated[str | None, typer.Option(hidden=True)] = None,
    overlap: Annotated[
        bool, typer.Option("--overlap", help="Half of a step computes while the other's tokens travel.")
    ] = False,
    num_requests: Annotated[int, typer.Option(help="That each simulation counts, at least.", min=1)] = 128,
    price: Annotated[str, typer.Option(help="Which of the catalogue's prices an hour.")] = "hyperscaler_tco",
    seed: Annotated[int, typer.Option(help="Of lengths.")] = 0,
    top: Annotated[int | None, typer.Option(help="Print so many of the deployments; default: all.", min=1)] = None,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Find the deployment that serves most within the limits. Says why the others lost; nothing of it is measured."""
    from miniserve.cli import plan_tables as tables
    from miniserve.cli.plan_load import read_load, read_stacks
    from miniserve.hardware.catalog import load_catalog
    from miniserve.hardware.shape import Precision
    from miniserve.simulate.deployment import Deployment, efficiency_for, kernels_of
    from miniserve.simulate.models import shape_by_name
    from miniserve.simulate.plan import Search
    from miniserve.simulate.report import assumed_prices, check_price, tier_sources
    from miniserve.simulate.speculation import Speculation
    from miniserve.workloads.service import SLO

    if ffn_hardware:
        raise InvalidRequestError(
            "a plan is over devices of one kind, which it counts; engines of two are simulated one by one: "
            f"miniserve simulate --hardware {hardware} --afd 2x6 --ffn-hardware {ffn_hardware}"
        )
    device = load_catalog().accelerator(hardware)
    check_price(price, device)
    usd_per_hour = device.usd_per_hour[price].value if price in device.usd_per_hour else None
    if (gpus is None) == (budget is None):
        raise InvalidRequestError("give one of --gpus and --budget")
    if budget is not None:
        if usd_per_hour is None:
            raise InvalidRequestError(f"the catalogue has no price of a {device.name}: give --gpus")
        gpus = int(budget // usd_per_hour)
        if not gpus:
            raise InvalidRequestError(f"${budget:g} an hour: one {device.name} costs ${usd_per_hour:g} ({price})")
    efficiency = efficiency_for(device)
    template = Deployment(
        device, shape_by_name(model), Precision.of(), efficiency=efficiency, block_size=block_size,
        max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens, overhead_s=overhead_ms / 1000,
        speculation=Speculation.parse(draft_acceptance) if draft_acceptance else None, overlap=overlap,
    )  # fmt: skip
    limits = SLO.parse(slo)
    load, asked = read_load(
        trace, workload, (input_len, output_len), seed, limits, attainment, num_requests, template.max_model_len
    )
    stacks = read_stacks(tiers, device) if tiers else []
    search = Search(
        template, gpus or 0, load, weights.split(","), kv, link_gbytes_per_s * 1e9, expert_skew, afd, stacks
    )
    outcomes = _outcomes(search)
    data = {
        "label": "simulated",
        "model": model,
        "hardware": device.key,
        "kernels": kernels_of(efficiency, template.shape),
        "devices": gpus,
        "usd_per_device_hour": usd_per_hour,
        "assumed": assumed_prices(price, [device]),
        "slo": limits.as_dict(),
        "attainment": attainment,
        "load": asked,
        "most_tokens": template.max_model_len,
        "mean_prompt_tokens": load.prompt,
        "mean_output_tokens": load.output,
        "user": load.user,
        "found_at_most": load.found / load.prompt,
        "tiers": tier_sources([tier for stack in stacks for tier in stack], device),
        "least_s": search.least(),
        "ranked": [tables.plain(outcome, search.num_devices, usd_per_hour) for outcome in outcomes],
    }
    give(data, as_json, out, partial(tables.ranked, top=top), simulated=device.name)


def _outcomes(search: "Search") -> "list[Outcome]":
    from rich.progress import TextColumn, TimeElapsedColumn

    columns = TextColumn("simulating {task.fields[what]}; {task.fields[left]} left"), TimeElapsedColumn()
    with progress(*columns) as shown:
        task = shown.add_task("", total=None, what="", left="")
        return search.outcomes(lambda what, left: shown.update(task, what=what, left=left))
