"""A `miniserve serve` of our own for the length of a benchmark, in processes of its own, on a free port."""

import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence

from miniserve.errors import MiniserveError
from miniserve.model.config_gguf import read_gguf_config
from miniserve.model.config_hf import read_hf_config
from miniserve.model.gguf import GGUFFile
from miniserve.model.sources.resolve import resolve

SHUTDOWN_S = 20.0


@contextlib.contextmanager
def own_server(model: str | None, options: Sequence[str] = ()) -> Iterator[str]:
    """Start it and wait until it is ready; gives the URL of its API. It ends with the block.

    In the main thread, where alone signals can be handled, it ends with a SIGTERM to this process, too.

    Args:
        model: what `miniserve serve` is given; None: the options say it, by --models.
        options: of that command.

    Raises:
        MiniserveError: it does not start; has the end of what it said.
    """
    command = [sys.executable, "-m", "miniserve", "serve", *filter(None, [model]), "--port", "0", *options]
    with tempfile.TemporaryFile("w+") as log:
        # In a session of its own, so that Ctrl-C ends the load and not, under its feet, the server.
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True)
        in_main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)) if in_main else None
        try:
            assert process.stdout is not None, "it was asked for"
            found = re.search(r"http://\S+/v1", process.stdout.readline())
            if not found:
                process.wait(SHUTDOWN_S)
                log.seek(0)
                raise MiniserveError(f"'{' '.join(command[2:])}' did not start: {log.read()[-1000:].strip()}")
            yield found.group()
        finally:
            process.terminate()
            try:
                process.wait(SHUTDOWN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if in_main:
                signal.signal(signal.SIGTERM, before)


def vocab_size(model: str) -> int:
    """Of a model on this machine, from its configuration alone.

    Raises:
        MiniserveError: there is none by that name, or it cannot be read.
    """
    files = resolve(model)
    if files.kind == "gguf":
        return read_gguf_config(GGUFFile(files.path)).vocab_size
    return read_hf_config(files.path / "config.json").vocab_size
