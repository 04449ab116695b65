"""`miniserve simulate`: the engine's own scheduler on hardware from the catalogue, under a virtual clock."""

from pathlib import Path
from typing import Annotated

import typer

from miniserve.cli.results import AsJson, Out, give
from miniserve.errors import InvalidRequestError

Many = list[str] | None


def simulate(
    config: Annotated[
        Path | None, typer.Argument(help="A TOML file with all of it, or some.", exists=True, dir_okay=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A published one, or a directory with config.json.")
    ] = None,
    hardware: Annotated[str | None, typer.Option(help="An accelerator of `miniserve hardware`.")] = None,
    tensor_parallel_size: Annotated[int | None, typer.Option("--tensor-parallel-size", "--tp", min=1)] = None,
    expert_parallel_size: Annotated[
        int | None, typer.Option("--expert-parallel-size", "--ep", help="Ranks that share out the experts.", min=1)
    ] = None,
    engines: Annotated[
        int | None, typer.Option(help="Engines, or those that decode beside --prefill-engines.", min=1)
    ] = None,
    prefill_engines: Annotated[int | None, typer.Option(help="For prompts alone; default: none.", min=0)] = None,
    prefill_tensor_parallel_size: Annotated[
        int | None, typer.Option("--prefill-tensor-parallel-size", "--prefill-tp", min=1)
    ] = None,
    prefill_from: Annotated[
        int | None, typer.Option(help="Prompts with fewer tokens missing stay where they decode; default: none.", min=0)
    ] = None,
    weights: Annotated[str | None, typer.Option(help="bf16 (default), fp8, fp8_block, nvfp4, …")] = None,
    kv: Annotated[str | None, typer.Option(help="Of keys and values; default: the activations'.")] = None,
    router: Annotated[str | None, typer.Option(help="round-robin, least-loaded (default) or kv-aware.")] = None,
    rate: Annotated[float | None, typer.Option(help="Requests a second, Poisson.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="So many users, each asking again at once.", min=1)] = None,
    trace: Annotated[Path | None, typer.Option(help="An Azure or Mooncake trace.", exists=True, dir_okay=False)] = None,
    workload: Annotated[
        str | None,
        typer.Option(help="Synthetic: azure-conv, azure-code, chat, agentic, rag, day; at --rate or its own."),
    ] = None,
    trace_speed: Annotated[float | None, typer.Option(help="How much faster than recorded.")] = None,
    input_len: Annotated[
        str | None, typer.Option(help="Tokens: N, LOW-HIGH, or MEDIAN/P90 (log-normal); default: 1024.")
    ] = None,
    output_len: Annotated[str | None, typer.Option(help="The same, of the output; default: 256.")] = None,
    warmup: Annotated[int | None, typer.Option(help="Not counted; default: --concurrency, or none.", min=0)] = None,
    num_requests: Annotated[int | None, typer.Option(help="Default: 256, or a trace's all.", min=1)] = None,
    tier: Annotated[
        Many,
        typer.Option(
            help="Where KV is kept besides, the nearest first: dram, nvme, cmx, or host:1TB:64GB/s[:10us][:shared]."
        ),
    ] = None,
    outage: Annotated[Many, typer.Option(help="An engine fails: at 60 s, engine 0, for 30 s is 60:0:30.")] = None,
    planner: Annotated[
        bool, typer.Option("--planner", help="Have as many of the engines run as the load needs; its settings: CONFIG.")
    ] = False,
    slo: Annotated[str | None, typer.Option(help="Limits in ms of ttft, itl, tpot, e2e: ttft:500,itl:50.")] = None,
    link_gbytes_per_s: Annotated[float | None, typer.Option(help="Of each prefill engine's KV; default: 50.")] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Default: 256.", min=1)] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option(help="Default: 2048.", min=1)] = None,
    block_size: Annotated[int | None, typer.Option(help="Tokens of a KV block; default: 64.", min=1)] = None,
    overhead_ms: Annotated[float | None, typer.Option(help="Of each step, besides its operators.", min=0)] = None,
    expert_skew: Annotated[
        float | None, typer.Option(help="Exponent of a power law that experts are chosen by.")
    ] = None,
    draft_acceptance: Annotated[str | None, typer.Option(help="A draft head's guesses: 0.8,0.6,… are right.")] = None,
    overlap: Annotated[
        bool | None, typer.Option("--overlap", help="Half of a step computes while the other's tokens travel.")
    ] = None,
    afd: Annotated[
        str | None,
        typer.Option(
            help="2x6: of each engine that decodes, 2 ranks of attention and 6 devices for feed-forward; 2x6x4: 6 for "
            "each layer, in 4 stages of layers."
        ),
    ] = None,
    afd_batches: Annotated[int | None, typer.Option(help="That take turns on both; default: 3.", min=1)] = None,
    ffn_hardware: Annotated[str | None, typer.Option(help="What those devices are; default: as the others.")] = None,
    afd_link: Annotated[
        str | None, typer.Option(help="Assumed between both, a device: 100GB/s[:5us]; default: the catalogue's.")
    ] = None,
    price: Annotated[str | None, typer.Option(help="Which of the catalogue's prices an hour.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of lengths and arrivals.")] = None,
    sweep: Annotated[str | None, typer.Option(help="For each of so many users: 1,8,64 or 1-256 (doubling).")] = None,
    save_config: Annotated[Path | None, typer.Option(help="Write what is simulated to this file, for CONFIG.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it: a .svg or .png file.")] = None,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Simulate a cluster: latencies, throughput, cost and use. It need not exist, and nothing of it is measured."""
    from miniserve.cli import simulate_flags as flags
    from miniserve.cli import simulate_run as running
    from miniserve.cli import simulate_tables as tables
    from miniserve.simulate.build import cluster_of
    from miniserve.simulate.scenario import Scenario
    from miniserve.tables import read_toml

    if not config and not (model and hardware):
        raise InvalidRequestError("--model and --hardware say what is simulated, or a CONFIG does")
    table = read_toml(config) if config else {}
    flags.put(table, {"model": model, "router": router, "slo": slo, "price": price, "prefill_from": prefill_from})
    if link_gbytes_per_s is not None:
        flags.put(table, {"bandwidth": link_gbytes_per_s * 1e9}, "link")
    if planner:
        table.setdefault("planner", {})
    if outage:
        table["outages"] = [flags.outage(text) for text in outage]
    flags.put_workload(table, {
        "trace": str(trace) if trace else None, "speed": trace_speed, "preset": workload, "rate": rate,
        "concurrency": concurrency, "input": input_len, "output": output_len, "requests": num_requests,
        "warmup": warmup, "seed": seed,
    })  # fmt: skip
    flags.put_engines(
        table,
        {
            "hardware": hardware, "weights": weights, "kv": kv, "max_num_seqs": max_num_seqs, "block_size": block_size,
            "max_num_batched_tokens": max_num_batched_tokens, "overhead_ms": overhead_ms,
            "expert_skew": expert_skew, "draft_acceptance": draft_acceptance, "overlap": overlap,
        },
        {
            "number": engines, "tensor": tensor_parallel_size, "expert": expert_parallel_size, "afd": afd,
            "afd_batches": afd_batches, "ffn_hardware": ffn_hardware,
            "afd_link": None if afd_link is None else flags.way(afd_link),
        },
        {"number": prefill_engines, "tensor": prefill_tensor_parallel_size},
    )  # fmt: skip
    if tier:
        flags.put_tiers(table, tier)
    scenario = Scenario.from_table(table)
    cluster_of(scenario)  # raises for what cannot be, before anything is written or takes time
    if plot:
        running.check_plot(plot)
    if save_config:
        save_config.write_text(scenario.to_toml(), encoding="utf-8")
    data = running.described(scenario)
    data |= running.swept(scenario, sweep, plot) if sweep else running.once(scenario, plot)
    give(data, as_json, out, tables.swept if sweep else tables.one, simulated=running.hardware_of(scenario))
