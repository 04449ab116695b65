"""The `miniserve` command. Each group of commands is a file here; heavy imports wait until a command runs.

Expected errors, and files that cannot be read or written, end in one line on stderr and an exit code; Ctrl-C ends in
130. Results go to stdout and everything about progress to stderr, so that a pipe sees results alone. Help is plain
text: no option's name is cut in a narrow terminal, and nothing that draws tables is imported for it.
"""

import os
import sys
from typing import Annotated

import typer

from miniserve._version import __version__
from miniserve.cli import bench, chat, generate, hardware, kv, models, plan, serve, simulate, train
from miniserve.errors import MiniserveError

# How long torch's threads spin at the end of a parallel loop before they sleep. By default for milliseconds, which
# costs a step all its speed as soon as anybody else uses one of the cores.
SPIN_COUNT = "2000"

app = typer.Typer(
    name="miniserve",
    help="A small, readable LLM serving engine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.command("serve")(serve.serve)
app.command("hardware")(hardware.hardware)
app.command("simulate")(simulate.simulate)
app.command("plan")(plan.plan)
app.command("train")(train.train)
app.add_typer(models.app, name="models")
app.add_typer(kv.app, name="kv")
app.add_typer(bench.app, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"miniserve {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of every command."""


def main() -> None:
    """Run the command line; the console script."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # read when torch is imported, which has not happened yet
    try:
        app()
    except MiniserveError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output went away (`| head`), as it may. Closing stderr keeps Python from complaining.
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        if error.filename is None:
            raise
        typer.echo(f"error: {error.filename}: {error.strerror}", err=True)
        sys.exit(1)
