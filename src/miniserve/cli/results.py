"""How every benchmark gives its result: a table, or one JSON object; in a file with its provenance."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Out = Annotated[Path | None, typer.Option(help="Write the result with its provenance to this file.")]


def give(data: dict[str, Any], as_json: bool, out: Path | None, table: Any) -> None:
    """Print a benchmark's result, as a table or as JSON, and write it to `out` with its provenance."""
    if out:
        from miniserve.bench.record import write_record

        arguments = [argument for argument in sys.argv[1:] if argument != "--json"]
        kind = "auto" if str(data.get("device")).startswith("cuda") else "cpu"
        write_record(out, data, " ".join(["miniserve", *arguments]), kind)
    if as_json:
        typer.echo(json.dumps(data))
    else:
        Console().print(table(data))
