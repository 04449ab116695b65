"""`miniserve train`: a model from a text, as a file says."""

import os
import signal
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from miniserve.train.session import Session


def train(
    config: Annotated[Path, typer.Argument(help="A TOML file: see TrainSettings.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder of the run and of its model; a run that is there goes on.")],
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    steps: Annotated[int | None, typer.Option(help="Other than the file says.", min=1)] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16, fp16 or fp8, other than the file says.")] = None,
) -> None:
    """Train a model. Ctrl-C ends it behind the step that is being done, and saves it; the same command goes on."""
    import torch

    from miniserve.tables import from_table, read_toml
    from miniserve.train.session import Session
    from miniserve.train.settings import TrainSettings

    table = read_toml(config)
    table |= {name: value for name, value in (("steps", steps), ("precision", precision)) if value is not None}
    if "text" in table:
        table["text"] = str(config.parent / str(table["text"]))
    settings = from_table(TrainSettings, table)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    with _processes(device):
        _run(Session(settings, out, torch.device(device)))


@contextmanager
def _processes(device: str) -> "Iterator[None]":
    """Several, if `torchrun` started this one."""
    import torch.distributed as dist

    if "WORLD_SIZE" not in os.environ:
        yield
        return
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def _run(session: "Session") -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from miniserve.train.flops import product_flops_per_s, token_flops
    from miniserve.train.memory import memory_bytes

    trainer, settings, console = session.trainer, session.settings, Console(stderr=True)
    config = trainer.decoder.config
    counts = f"{config.num_parameters():,} weights, {config.num_active_parameters():,} for a token"
    peak = product_flops_per_s(trainer.decoder.device, trainer.precision.dtype)
    console.print(f"{counts}; {len(trainer.corpus.train):,} tokens to learn from; begins with step {trainer.step + 1}")
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    shares, most = list[float](), 0
    with _until_interrupted() as stop, Progress(*columns, console=console) as shown:
        task = shown.add_task("", total=settings.steps, completed=trainer.step)
        for report in session.run(stop):
            rate = settings.step_tokens / report.seconds
            used = rate * token_flops(config, settings.length) / peak / trainer.share.size
            shares.append(used)
            most = max(most, memory_bytes(trainer.decoder.device))
            shown.update(
                task, completed=report.step,
                description=f"loss {report.cross_entropy:.3f}, {rate:,.0f} tokens/s, MFU {used:.0%}",
            )  # fmt: skip
            if (held_out := session.history[-1].get("held_out")) is not None and trainer.share.rank == 0:
                shown.console.print(f"step {report.step}: held-out loss {held_out:.4f}")
    if trainer.share.rank == 0:
        if shares:  # of a run that was done before there are none
            used = statistics.median(shares)
            console.print(f"median step: MFU {used:.0%}, of a large product here; {most / 2**20:,.0f} MiB at most")
        done = trainer.step == settings.steps
        typer.echo(f"{session.directory}: {'the model is there' if done else f'stopped behind step {trainer.step}'}")


@contextmanager
def _until_interrupted() -> "Iterator[Callable[[], bool]]":
    """The first Ctrl-C is a wish, the second one as ever."""
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
