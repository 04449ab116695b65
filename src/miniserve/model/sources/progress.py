"""Telling a person on stderr how far a long read or transfer is. Nothing here ever writes to stdout."""

import sys

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


def byte_bar(progress: bool) -> Progress:
    """A progress bar on stderr that shows nothing unless stderr is a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not (progress and sys.stderr.isatty()),
        redirect_stdout=False,  # rich would otherwise send other people's prints to stderr
        redirect_stderr=False,
    )


def say(message: str) -> None:
    """One line."""
    print(message, file=sys.stderr, flush=True)
