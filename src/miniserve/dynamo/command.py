"""How the programs of this package run: `python -m miniserve.dynamo`, `.local` and `.planner`."""

import logging
import sys
from collections.abc import Callable

import typer

from miniserve.errors import MiniserveError


def run(command: Callable[..., None]) -> None:
    """With the arguments of the command line; Ctrl-C ends it, and an expected error is one line.

    Help is plain text, as of `miniserve`.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(command)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except KeyboardInterrupt:
        pass
    except MiniserveError as error:
        sys.exit(f"error: {error}")
