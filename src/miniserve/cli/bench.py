"""`miniserve bench`: how fast, and what share of this machine's limits. Tables on a terminal, one object with --json.

`--out FILE` keeps a result with its provenance, in the form the book reads.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from miniserve.cli import bench_serve
from miniserve.cli import bench_tables as tables
from miniserve.cli.loading import (
    AfdOption,
    BackendOption,
    DeviceOption,
    DtypeOption,
    ExpertLoadsOption,
    ExpertParallelOption,
    KVCacheDtypeOption,
    ModelOption,
    QuantizationOption,
    RedundantExpertsOption,
    SpeculationOption,
    TensorParallelOption,
    ThreadsOption,
    open_llm,
    open_model,
)
from miniserve.cli.results import AsJson, Out, give

if TYPE_CHECKING:
    from miniserve.model.load import LoadedModel

app = typer.Typer(help="Measure the engine.", no_args_is_help=True)
app.command("serve")(bench_serve.serve)


@app.command()
def throughput(
    model: ModelOption = "smollm2",
    num_requests: Annotated[int, typer.Option(help="Requests of the batch run.", min=1)] = 64,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    quantization: QuantizationOption = "auto",
    kv_cache_dtype: KVCacheDtypeOption = "auto",
    speculation: SpeculationOption = None,
    threads: ThreadsOption = None,
    tensor_parallel_size: TensorParallelOption = 1,
    expert_parallel: ExpertParallelOption = False,
    redundant_experts: RedundantExpertsOption = 0,
    expert_loads: ExpertLoadsOption = None,
    afd: AfdOption = None,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """A fixed workload (prompts and outputs of 64 to 256 tokens, greedy), all at once, and one request alone."""
    from miniserve.bench.throughput import bench_throughput

    how = {"dtype": dtype, "device": device, "backend": backend, "quantization": quantization, "threads": threads}
    ranks: dict[str, Any] = {"tensor_parallel_size": tensor_parallel_size, "expert_parallel": expert_parallel}
    ranks |= {"redundant_experts": redundant_experts, "expert_loads": expert_loads and str(expert_loads), "afd": afd}
    options: dict[str, Any] = {"kv_cache_dtype": kv_cache_dtype, "speculation": speculation}
    with open_llm(model, how, max_num_seqs=num_requests, **options, **ranks) as llm:
        data = _what_ran(llm.model) | {"speculation": speculation} | ranks
        data |= bench_throughput(llm, num_requests, apart=afd is not None, progress=sys.stderr.isatty())
    give(data, as_json, out, tables.throughput)


@app.command()
def ceilings(
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    as_json: AsJson = False,
    out: Annotated[
        Path | None, typer.Option(help="Where the result is kept; default: results/DEVICE/ceilings.json.")
    ] = None,
) -> None:
    """This machine's limits: bandwidth by size, matrix products by format and size, the cost of a launch."""
    import torch
    from rich.progress import Progress

    from miniserve.bench.ceilings import bench_ceilings
    from miniserve.bench.record import device_slug
    from miniserve.hardware.this_machine import num_cores
    from miniserve.model.choices import choose_device

    chosen = choose_device(device)
    torch.set_num_threads(threads or num_cores())
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=1.0)
        data = bench_ceilings(chosen, lambda done, what: bar.update(task, completed=done, description=what))
    give(data, as_json, out or Path("results") / device_slug(chosen.type) / "ceilings.json", tables.ceilings)


@app.command()
def scheduler(as_json: AsJson = False, out: Out = None) -> None:
    """What a step costs in the core alone, without a model."""
    from miniserve.bench.scheduler import bench_scheduler

    give(bench_scheduler(), as_json, out, tables.scheduler)


@app.command()
def prefix(
    model: ModelOption = "smollm2",
    num_chats: Annotated[int, typer.Option(help="Conversations at once.", min=1)] = 8,
    turns: Annotated[int, typer.Option(help="Turns of each.", min=2)] = 8,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    quantization: QuantizationOption = "auto",
    threads: ThreadsOption = None,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Conversations under one system prompt of 512 tokens, with and without the prefix cache."""
    from miniserve.bench.prefix import bench_prefix

    how = {"dtype": dtype, "device": device, "backend": backend, "quantization": quantization, "threads": threads}
    loaded = open_model(model, how)
    data = bench_prefix(loaded, num_chats, turns=turns)
    give(_what_ran(loaded) | {"num_chats": num_chats, "turns": turns} | data, as_json, out, tables.flat)


@app.command()
def tiers(
    folder: Annotated[
        Path | None, typer.Argument(help="On the disk to measure; default: where temporary files go.", file_okay=False)
    ] = None,
    model: ModelOption = "smollm2",
    num_chats: Annotated[int, typer.Option(help="Conversations that take turns.", min=2)] = 2,
    turns: Annotated[int, typer.Option(help="Turns of each.", min=2)] = 4,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    quantization: QuantizationOption = "auto",
    threads: ThreadsOption = None,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """A conversation that the device has forgotten: computed again, loaded from host memory, loaded from disk."""
    from miniserve.bench.tiers import bench_tiers

    how = {"dtype": dtype, "device": device, "backend": backend, "quantization": quantization, "threads": threads}
    loaded = open_model(model, how)
    data = bench_tiers(loaded, folder, num_chats, turns=turns)
    give(_what_ran(loaded) | {"num_chats": num_chats} | data, as_json, out, tables.tiers)


@app.command()
def speculation(
    proposer: Annotated[
        str, typer.Argument(help="ngram, or a draft model; :N behind it for up to N tokens.")
    ] = "ngram",
    model: ModelOption = "smollm2",
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    quantization: QuantizationOption = "auto",
    threads: ThreadsOption = None,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """With and without guesses, greedily: text that quotes its prompt and text that does not, batch 1 and 8."""
    from miniserve.bench.speculation import bench_speculation

    how = {"dtype": dtype, "device": device, "backend": backend, "quantization": quantization, "threads": threads}
    loaded = open_model(model, how)
    give(_what_ran(loaded) | bench_speculation(loaded, proposer), as_json, out, tables.speculation)


@app.command()
def soak(
    model: ModelOption = "smollm2",
    minutes: Annotated[float, typer.Option(help="How long.", min=0.01)] = 30.0,
    seed: Annotated[int, typer.Option(help="Of the whole run.")] = 0,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    quantization: QuantizationOption = "auto",
    threads: ThreadsOption = None,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Random load on tight engines against known answers: aborts, malformed and oversized requests, tiny pools."""
    from rich.progress import Progress

    from miniserve.bench.soak import soak as run_soak

    how = {"dtype": dtype, "device": device, "backend": backend, "quantization": quantization, "threads": threads}
    loaded = open_model(model, how)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("soaking", total=minutes * 60)
        data = run_soak(loaded, minutes * 60, seed=seed, progress=lambda gone: bar.update(task, completed=gone))
    give(_what_ran(loaded) | {"seed": seed} | data, as_json, out, tables.flat)


@app.command()
def accuracy(
    text: Annotated[list[Path], typer.Argument(help="Files of real text, UTF-8.", exists=True, dir_okay=False)],
    model: ModelOption = "smollm2",
    tokens: Annotated[int, typer.Option(help="Most tokens of it.", min=2)] = 4096,
    window: Annotated[int, typer.Option(help="Tokens that a prediction may look back at.", min=2)] = 512,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """What each form of the weights and of the KV that the device has costs in perplexity and agreement."""
    from miniserve.bench.accuracy import FORMS, bench_accuracy
    from miniserve.model.choices import choose_device

    kind = choose_device(device).type

    def load(**form: str) -> "LoadedModel":
        how = {"dtype": "auto", "backend": "auto", "quantization": "auto", "device": device} | form
        return open_model(model, how | {"threads": threads})

    words = "\n".join(path.read_text(encoding="utf-8") for path in text)
    console = Console(stderr=True)
    data = bench_accuracy(load, words, num_tokens=tokens, window=window, forms=FORMS[kind], progress=console.print)
    give({"model": model, "device": kind} | data, as_json, out, tables.accuracy)


def _what_ran(loaded: "LoadedModel") -> dict[str, Any]:
    import torch

    choices = loaded.choices
    dtype, threads = str(choices.dtype).removeprefix("torch."), torch.get_num_threads()
    return {
        "model": loaded.files.name,
        "device": str(choices.device),
        "backend": choices.backend,
        "dtype": dtype,
        "quantization": choices.quantization,
        "threads": threads,
    }
