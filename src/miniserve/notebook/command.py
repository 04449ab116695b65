"""A command of `miniserve`, run where a chapter stands: what was typed, and what came of it.

The same program as on a command line, in a process of its own. A command that fails raises, and so fails the page that
it is on; nothing of what it printed is changed or left out, but for progress, which goes to stderr.
"""

import html
import os
import shlex
import subprocess
import sys
from pathlib import Path

from miniserve.errors import InvalidRequestError

WIDTH = 86  # columns: as wide as a page is, in a smaller font
STYLE = "line-height:1.2;font-size:0.72em"  # so that lines of a table touch
COLOR = ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE")  # a notebook's kernel sets them: codes a page does not know


class CommandOutput:
    """What a command printed, under the command as it was typed."""

    def __init__(self, typed: str, text: str) -> None:
        """Keep both."""
        self.typed, self.text = typed, text

    def __repr__(self) -> str:
        return f"$ {self.typed}\n{self.text}"

    def _repr_html_(self) -> str:
        label = html.escape(" ".join(self.typed.split())[:60], quote=True)
        return (
            f'<pre class="ms-command" tabindex="0" role="region" aria-label="{label}" style="{STYLE}">'
            f"<strong>$ {html.escape(self.typed)}</strong>\n{html.escape(self.text)}</pre>"
        )


def run_command(typed: str, folder: Path | None = None) -> CommandOutput:
    """Run `miniserve …`; it may go over several lines, as in a shell. Files that it names are in `folder`, or here.

    Raises:
        InvalidRequestError: it is no command of miniserve, or it ended with an error, which the message has.

    Example:
        >>> from miniserve.notebook import run_command
        >>> run_command("miniserve --version")
        $ miniserve --version
        miniserve ...
    """
    words = shlex.split(typed.replace("\\\n", " "))
    if not words or words[0] != "miniserve":
        raise InvalidRequestError(f"{typed!r} is no command of miniserve")
    source = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    plain = {name: value for name, value in os.environ.items() if name not in COLOR}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, capture_output=True, encoding="utf-8", check=False,
        env=plain | {"PYTHONPATH": paths, "COLUMNS": str(WIDTH), "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    if done.returncode:
        raise InvalidRequestError(f"{typed!r} ended with {done.returncode}: {done.stderr.strip()}")
    return CommandOutput(typed, "\n".join(line.rstrip() for line in done.stdout.splitlines()))
