"""`miniserve bench`: how fast, and what share of this machine's limits. Tables on a terminal, one object with --json.

`--out FILE` keeps a result with its provenance, in the form the book reads.
"""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from miniserve.cli import bench_serve
from miniserve.cli.engine_options import LLMOptions
from miniserve.cli.loading import DeviceOption, ModelOption, ModelOptions, ThreadsOption, open_model, what_ran
from miniserve.cli.option_tables import with_tables
from miniserve.cli.results import AsJson, Out, give, progress
from miniserve.errors import InvalidRequestError

if TYPE_CHECKING:
    from miniserve.model.load import LoadedModel

app = typer.Typer(help="Measure the engine.", no_args_is_help=True)
app.command("serve")(bench_serve.serve)


@app.command()
@with_tables(how=LLMOptions)
def throughput(
    model: ModelOption = "smollm2",
    num_requests: Annotated[int, typer.Option(help="Requests of the batch run.", min=1)] = 64,
    as_json: AsJson = False,
    out: Out = None,
    *,
    how: LLMOptions,
) -> None:
    """A fixed workload: all requests at once, and one alone. Prompts and outputs of 64 to 256 tokens, greedy."""
    from miniserve.bench.throughput import bench_throughput
    from miniserve.cli.bench_tables import throughput as table

    asked = {
        "speculation": how.speculation,
        "tensor_parallel_size": how.tensor_parallel_size,
        "expert_parallel": how.expert_parallel,
        "redundant_experts": how.redundant_experts,
        "expert_loads": how.expert_loads and str(how.expert_loads),
        "afd": how.afd,
    }
    with how.open(model, max_num_seqs=num_requests) as llm:
        data = what_ran(llm.model) | asked
        data |= bench_throughput(llm, num_requests, apart=how.afd is not None, progress=sys.stderr.isatty())
    give(data, as_json, out, table)


@app.command()
def ceilings(
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    as_json: AsJson = False,
    out: Annotated[
        Path | None, typer.Option(help="Where the result is kept; default: results/DEVICE/ceilings.json.")
    ] = None,
) -> None:
    """This machine's limits. Bandwidth by size, matrix products by format and size, the cost of a launch."""
    import torch

    from miniserve.bench.ceilings import bench_ceilings
    from miniserve.bench.record import device_slug
    from miniserve.cli.bench_tables import ceilings as table
    from miniserve.hardware.this_machine import num_cores
    from miniserve.model.choices import choose_device

    chosen = choose_device(device)
    torch.set_num_threads(threads or num_cores())
    with progress() as bar:
        task = bar.add_task("starting", total=1.0)
        data = bench_ceilings(chosen, lambda done, what: bar.update(task, completed=done, description=what))
    give(data, as_json, out or Path("results") / device_slug(chosen.type) / "ceilings.json", table)


@app.command()
def scheduler(as_json: AsJson = False, out: Out = None) -> None:
    """What a step costs in the core alone, without a model."""
    from miniserve.bench.scheduler import bench_scheduler
    from miniserve.cli.bench_tables import scheduler as table

    give(bench_scheduler(), as_json, out, table)


@app.command()
@with_tables(how=ModelOptions)
def prefix(
    model: ModelOption = "smollm2",
    num_chats: Annotated[int, typer.Option(help="Conversations at once.", min=1)] = 8,
    turns: Annotated[int, typer.Option(help="Turns of each.", min=2)] = 8,
    as_json: AsJson = False,
    out: Out = None,
    *,
    how: ModelOptions,
) -> None:
    """Chats that begin alike, with and without the prefix cache. All have one system prompt of 512 tokens."""
    from miniserve.bench.prefix import bench_prefix
    from miniserve.cli.bench_tables import flat as table

    loaded = open_model(model, how)
    data = bench_prefix(loaded, num_chats, turns=turns)
    give(what_ran(loaded) | {"num_chats": num_chats, "turns": turns} | data, as_json, out, table)


@app.command()
@with_tables(how=ModelOptions)
def tiers(
    folder: Annotated[
        Path | None,
        typer.Argument(help="On the disk to measure; default: where temporary files go.", exists=True, file_okay=False),
    ] = None,
    model: ModelOption = "smollm2",
    num_chats: Annotated[int, typer.Option(help="Conversations that take turns.", min=2)] = 2,
    turns: Annotated[int, typer.Option(help="Turns of each.", min=2)] = 4,
    as_json: AsJson = False,
    out: Out = None,
    *,
    how: ModelOptions,
) -> None:
    """A forgotten chat: computed again, or loaded. From host memory, and from disk."""
    from miniserve.bench.tiers import bench_tiers
    from miniserve.cli.bench_tables import tiers as table

    loaded = open_model(model, how)
    data = bench_tiers(loaded, folder, num_chats, turns=turns)
    give(what_ran(loaded) | {"num_chats": num_chats} | data, as_json, out, table)


@app.command()
@with_tables(how=ModelOptions)
def speculation(
    proposer: Annotated[
        str, typer.Argument(help="ngram, or a draft model; :N behind it for up to N tokens.")
    ] = "ngram",
    model: ModelOption = "smollm2",
    as_json: AsJson = False,
    out: Out = None,
    *,
    how: ModelOptions,
) -> None:
    """With and without guesses, greedily. Text that quotes its prompt and text that does not, batch 1 and 8."""
    from miniserve.bench.speculation import bench_speculation
    from miniserve.cli.bench_tables import speculation as table

    loaded = open_model(model, how)
    give(what_ran(loaded) | bench_speculation(loaded, proposer), as_json, out, table)


@app.command()
@with_tables(how=ModelOptions)
def soak(
    model: ModelOption = "smollm2",
    minutes: Annotated[float, typer.Option(help="How long.", min=0.01)] = 30.0,
    seed: Annotated[int, typer.Option(help="Of the whole run.")] = 0,
    as_json: AsJson = False,
    out: Out = None,
    *,
    how: ModelOptions,
) -> None:
    """Random load on tight engines against known answers. Aborts, nonsense, oversized requests, tiny pools."""
    from miniserve.bench.soak import soak as run_soak
    from miniserve.cli.bench_tables import flat as table

    loaded = open_model(model, how)
    with progress() as bar:
        task = bar.add_task("soaking", total=minutes * 60)
        data = run_soak(loaded, minutes * 60, seed=seed, progress=lambda gone: bar.update(task, completed=gone))
    give(what_ran(loaded) | {"seed": seed} | data, as_json, out, table)


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
    """What each form of weights and KV costs in accuracy. In perplexity and agreement, all that the device has."""
    from miniserve.bench.accuracy import FORMS, bench_accuracy
    from miniserve.cli.bench_tables import accuracy as table
    from miniserve.model.choices import choose_device

    kind = choose_device(device).type

    def load(**form: str) -> "LoadedModel":
        return open_model(model, ModelOptions(device=device, threads=threads, **form))

    words = "\n".join(map(_text_of, text))
    data = bench_accuracy(
        load,
        words,
        num_tokens=tokens,
        window=window,
        forms=FORMS[kind],
        progress=partial(typer.echo, err=True),
    )
    give({"model": model, "device": kind} | data, as_json, out, table)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{path}: no text in UTF-8: {error}") from error
