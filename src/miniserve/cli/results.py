"""How a benchmark or a simulation gives its result: a table, or one JSON object; in a file with its provenance.

The result goes to stdout, and how far it is to stderr.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Out = Annotated[Path | None, typer.Option(help="Write the result with its provenance to this file.")]


def give(data: dict[str, Any], as_json: bool, out: Path | None, table: Any, *, simulated: str | None = None) -> None:
    """Print a result, as a table or as JSON, and write it to `out` with its provenance.

    Args:
        data: plain numbers, names, lists and mappings.
        as_json, out: the options above.
        table: makes what is printed of `data`.
        simulated: the hardware, if it was simulated and nothing was measured.
    """
    if out:
        from miniserve.bench.record import write_record

        arguments = [argument for argument in sys.argv[1:] if argument != "--json"]
        kind = "auto" if str(data.get("device")).startswith("cuda") else "cpu"
        write_record(out, data, " ".join(["miniserve", *arguments]), kind, simulated=simulated)
    if as_json:
        typer.echo(json.dumps(data))
    else:
        from rich.console import Console

        Console().print(table(data))


def progress(*columns: "ProgressColumn") -> "Progress":
    """A display on stderr of how far a command is, gone when it ends; in a pipe there is none."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
