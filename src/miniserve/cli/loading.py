"""Loading a model for a command, with a progress bar on stderr; and the options that say how, `ModelOptions`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from miniserve.llm import LLM
    from miniserve.model.load import LoadedModel

MODEL_HELP = "Alias, directory, .gguf file, registry:NAME[@VERSION], or org/name."
ModelOption = Annotated[str, typer.Option("--model", "-m", help=MODEL_HELP)]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
ThreadsOption = Annotated[int | None, typer.Option(help="CPU threads; default: the cores this may use.", min=1)]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What `load_model` takes, and the threads that compute; a table for `with_tables`."""

    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto"
    device: DeviceOption = "auto"
    backend: Annotated[str, typer.Option(help="auto, torch, or cpu: C++ kernels, compiled at first use.")] = "auto"
    quantization: Annotated[
        str, typer.Option(help="auto, none; on a CPU int8, int4, or file: the GGUF's own; on a GPU int8, fp8.")
    ] = "auto"
    threads: ThreadsOption = None


def open_model(model: str, how: ModelOptions) -> "LoadedModel":
    """Load, showing progress on stderr if that is a terminal."""
    with _preparing(model, how) as rest:
        from miniserve.model.load import load_model

        loaded = load_model(model, **rest)
    _note(loaded)
    return loaded


def open_llm(model: str, how: ModelOptions, **options: Any) -> "LLM":
    """An engine, shown and asked for as in `open_model`. `options` go to `LLM`."""
    with _preparing(model, how) as rest:
        from miniserve.llm import LLM

        llm = LLM(model, **rest, **options)
    _note(llm.model)
    return llm


def what_ran(loaded: "LoadedModel") -> dict[str, Any]:
    """A model and everything that was chosen for it, in plain words: for a result to say of what it is."""
    import torch

    choices = loaded.choices
    return {
        "model": loaded.files.name,
        "device": str(choices.device),
        "backend": choices.backend,
        "dtype": str(choices.dtype).removeprefix("torch."),
        "quantization": choices.quantization,
        "threads": torch.get_num_threads(),
    }


@contextmanager
def _preparing(model: str, how: ModelOptions) -> Iterator[dict[str, Any]]:
    """Start torch with its threads; gives what a loader takes, with a `progress` that moves a bar within the block."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    with console.status("starting torch"):
        import torch

        from miniserve.hardware.this_machine import num_cores
        from miniserve.kernels.cpu.binding import unavailable
        from miniserve.model.choices import choose_device
    torch.set_num_threads(how.threads or num_cores())
    if how.backend != "torch" and choose_device(how.device).type == "cpu":
        with console.status("compiling the C++ kernels, once on this machine"):
            unavailable()  # loads them, and compiles them where that has not been done
    columns = (TextColumn("[progress.description]{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(f"loading {model}", total=None, visible=True)
        yield {
            "dtype": how.dtype, "device": how.device, "backend": how.backend, "quantization": how.quantization,
            "progress": lambda done, total: bar.update(task, completed=done, total=total),
        }  # fmt: skip


def _note(loaded: "LoadedModel") -> None:
    if loaded.choices.note:
        from rich.console import Console

        console = Console(stderr=True)
        console.print(f"note: {loaded.choices.note}", style="yellow", highlight=False, soft_wrap=True)
