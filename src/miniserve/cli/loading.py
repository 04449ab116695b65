"""What the commands share: how a model is asked for, and loading it with a progress bar on stderr."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from miniserve.llm import LLM
    from miniserve.model.load import LoadedModel

MODEL_HELP = "Alias, directory, .gguf file, registry:NAME[@VERSION], or org/name."
ModelOption = Annotated[str, typer.Option("--model", "-m", help=MODEL_HELP)]
RequireSignedOption = Annotated[
    Path | None,
    typer.Option("--require-signed", help="A public key (PEM): a model that its owner has not signed is refused."),
]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
BackendOption = Annotated[str, typer.Option(help="auto, torch, or cpu: C++ kernels, compiled at first use.")]
QuantizationOption = Annotated[
    str, typer.Option(help="auto, none; on a CPU int8, int4, or file: the GGUF's own; on a GPU int8, fp8.")
]
KVCacheDtypeOption = Annotated[str, typer.Option(help="auto; with Triton or plain torch fp8 or int8: half the memory.")]
SpeculationOption = Annotated[
    str | None, typer.Option(help="Guess tokens ahead: ngram, or a draft model; :N behind it for up to N tokens.")
]
ThreadsOption = Annotated[int | None, typer.Option(help="CPU threads; default: the cores this may use.", min=1)]
KVHostOption = Annotated[
    int | None, typer.Option("--kv-host-mib", help="Host memory for KV that the device has no room for; each engine's.")
]
KVDiskOption = Annotated[
    Path | None, typer.Option("--kv-disk", help="A directory for the same; it outlives the process and may be shared.")
]
KVDiskMibOption = Annotated[int | None, typer.Option("--kv-disk-mib", help="What its files may take; default: 10240.")]
KVDiskKeyOption = Annotated[
    Path | None, typer.Option("--kv-disk-key-file", help="32 bytes, base64 or hexadecimal: encrypt these files.")
]
KVCompressOption = Annotated[str, typer.Option(help="How host and disk hold KV: none, or fp8: half of it, rounded.")]
TensorParallelOption = Annotated[
    int,
    typer.Option("--tensor-parallel-size", help="Processes that hold a slice of the model each, on a GPU each."),
]

ExpertParallelOption = Annotated[
    bool, typer.Option("--expert-parallel", help="Of a mixture, these processes hold some of the experts whole.")
]
RedundantExpertsOption = Annotated[
    int, typer.Option("--redundant-experts", help="Slots of a layer for copies of the busiest experts.")
]
ExpertLoadsOption = Annotated[
    Path | None, typer.Option("--expert-loads", help="JSON: each layer's experts' loads, by which they are placed.")
]
AfdOption = Annotated[
    str | None,
    typer.Option("--afd", help="MxN: attention and KV in M processes, the feed-forward parts in N others."),
]
AfdTraceOption = Annotated[
    Path | None, typer.Option("--afd-trace", help="A folder where these record who computed what when.")
]


def open_model(model: str, how: dict[str, Any]) -> "LoadedModel":
    """Load, showing progress on stderr if that is a terminal. `how`: `threads`, and what `load_model` takes."""
    with _preparing(model, how) as rest:
        from miniserve.model.load import load_model

        loaded = load_model(model, **rest)
    _note(loaded)
    return loaded


def open_llm(model: str, how: dict[str, Any], **options: Any) -> "LLM":
    """An engine, shown and asked for as in `open_model`. `options` go to `LLM`."""
    with _preparing(model, how) as rest:
        from miniserve.llm import LLM

        llm = LLM(model, **rest, **options)
    _note(llm.model)
    return llm


@contextmanager
def _preparing(model: str, how: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Start torch with `threads`; gives the rest of `how`, with a `progress` that moves a bar within the block."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    with console.status("starting torch"):
        import torch

        from miniserve.hardware.this_machine import num_cores
        from miniserve.kernels.cpu.binding import unavailable
        from miniserve.model.choices import choose_device
    how = dict(how)
    torch.set_num_threads(how.pop("threads") or num_cores())
    if how["backend"] != "torch" and choose_device(how["device"]).type == "cpu":
        with console.status("compiling the C++ kernels, once on this machine"):
            unavailable()  # loads them, and compiles them where that has not been done
    columns = (TextColumn("[progress.description]{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(f"loading {model}", total=None, visible=True)
        yield how | {"progress": lambda done, total: bar.update(task, completed=done, total=total)}


def _note(loaded: "LoadedModel") -> None:
    if loaded.choices.note:
        console = Console(stderr=True)
        console.print(f"note: {loaded.choices.note}", style="yellow", highlight=False, soft_wrap=True)
