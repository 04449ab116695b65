"""What the commands share: an engine, its weights loaded with a progress bar on stderr."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from miniserve.llm import LLM

ModelOption = Annotated[str, typer.Option("--model", "-m", help="Alias, directory, .gguf file, or org/name.")]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def open_llm(model: str, dtype: str, device: str, **options: Any) -> "LLM":
    """Load, showing progress on stderr if that is a terminal. `options` go to `LLM`."""
    console = Console(stderr=True)
    with console.status("starting torch"):
        from miniserve.llm import LLM
    columns = (TextColumn("[progress.description]{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(f"loading {model}", total=None, visible=False)
        return LLM(
            model,
            dtype=dtype,
            device=device,
            **options,
            progress=lambda done, total: bar.update(task, completed=done, total=total, visible=True),
        )
