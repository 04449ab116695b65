"""Virtual environments for peers, made with the standard `venv` and pip as this machine has it set up."""

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO


class SetupError(Exception):
    """A peer could not be set up. The text is one line."""


def environment(name: str, folder: Path, requirements: Sequence[str], unwanted: Sequence[str], log: Path) -> str:
    """The Python of the environment that holds exactly this peer's requirements; made if it is not there yet.

    Args:
        name: of the environment's folder below `folder`.
        requirements: what pip is asked for.
        unwanted: distributions to remove afterwards: dependencies that are not needed and do not load everywhere.
        log: what pip says goes here.

    Raises:
        SetupError: pip failed; names the reason it gave.
    """
    wanted = "\n".join([sys.version, *requirements, *(f"not {each}" for each in unwanted)])
    key = hashlib.sha256(wanted.encode()).hexdigest()[:8]
    home = folder / f"{name}-{key}"
    python = home / "bin" / "python"
    done = home / "installed.txt"
    if done.is_file():
        return str(python)
    shutil.rmtree(home, ignore_errors=True)  # what an interrupted run left
    home.mkdir(parents=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    with log.open("w", encoding="utf-8") as output:
        _call([sys.executable, "-m", "venv", str(home)], output, log)
        _call([*pip, "install", "--only-binary", ":all:", *requirements], output, log)
        if unwanted:
            _call([*pip, "uninstall", "-y", *unwanted], output, log)
    done.write_text(wanted, encoding="utf-8")
    return str(python)


def _call(command: Sequence[str], output: IO[str], log: Path) -> None:
    code = subprocess.call(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    if code:
        raise SetupError(f"{Path(command[0]).name} {' '.join(command[1:4])} … failed: {reason_in(log)}")


def reason_in(log: Path) -> str:
    """The line of a log that says best what went wrong: the last with "error" or "assert" in it, else the last."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"error|assert|illegal|abort|cannot", line, re.IGNORECASE)]
    return without_paths((telling or lines or ["nothing was said"])[-1])[:300]


def without_paths(text: str) -> str:
    """`text` with folders of this machine left out: `/a/b/c.so` becomes `…/c.so`."""
    return re.sub(r"(?<![\w/])/(?:[^\s/:'\"]+/)+", "…/", text)
