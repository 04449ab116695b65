"""What a peer's script says to the benchmark: one JSON object a line, on stdin and stdout.

    {"options": {...}}                      -> {"ready": true, "versions": {...}, "notes": {...}, "choices": {...}}
    {"configure": {"batch_size": 8}}        -> {"configured": {...}}
    {"run": [[[prompt ids], max_tokens]]}   -> {"seconds": 1.5, "ttft_s": 0.1, "output_tokens": 9, "first_ids": [[...]]}

Anything that goes wrong is {"error": "its first line"}. The process loads its model once and then waits on stdin
between runs; it ends when stdin does. Standard library only: it runs in every peer's own environment.
"""

import json
import os
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

FIRST_IDS = 32  # of each output, for the comparison with ours


class Job(NamedTuple):
    """A prompt and how many tokens must follow it, whatever they are."""

    prompt_token_ids: list[int]
    max_tokens: int


class Outputs(NamedTuple):
    """The token ids of each job in order, and the seconds until the first token of the first (None: not known)."""

    token_ids: Sequence[Sequence[int]]
    ttft_s: float | None = None


class Peer(ABC):
    """An engine with its model loaded.

    Attributes:
        packages: the distributions whose versions a measurement should carry.
        notes: what a reader should know of this engine: instruction sets, what was switched off.
        settings: how it runs now.
        choices: what of the settings may be tried, and which values.
    """

    packages: Sequence[str] = ()

    def __init__(self) -> None:
        self.notes: dict[str, Any] = {}
        self.settings: dict[str, Any] = {}
        self.choices: dict[str, list[Any]] = {}

    def choose(self, options: dict[str, Any], choices: dict[str, list[Any]]) -> None:
        """Set `choices`, and `settings` to the first of each unless the options say otherwise; and the threads."""
        self.choices = choices
        self.settings = {name: options.get(name, values[0]) for name, values in choices.items()}
        self.settings["threads"] = options["threads"]

    def configure(self, settings: dict[str, Any]) -> None:
        """Change some of the settings; what takes time is done here and not in the next run."""
        self.settings |= settings

    def prepare(self, jobs: list[Job]) -> None:  # noqa: B027, most need nothing
        """Whatever belongs to starting up rather than to running jobs of this shape; not timed."""

    @abstractmethod
    def run(self, jobs: list[Job]) -> Outputs:
        """Continue all the jobs, greedily, past any end-of-sequence token."""


def serve(load: Callable[[dict[str, Any]], Peer]) -> None:
    """Answer requests until stdin ends. `load` is given the options of the first line."""
    # Whatever the libraries print must not get between the answers: stdout becomes stderr for everybody else.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    peer: Peer | None = None
    for line in sys.stdin:
        try:
            request = json.loads(line)
            if peer is None:
                peer = load(request["options"])
                answer(
                    {
                        "ready": True,
                        "versions": {name: version(name) for name in peer.packages},
                        "notes": peer.notes,
                        "settings": peer.settings,
                        "choices": peer.choices,
                    }
                )
            elif "configure" in request:
                peer.configure(request["configure"])
                answer({"configured": peer.settings})
            else:
                answer(_run(peer, [Job(*job) for job in request["run"]]))
        except Exception as error:  # whatever a library raises is the answer
            answer({"error": first_line(error)})
            if peer is None:
                traceback.print_exc()
                raise SystemExit(1) from error


def _run(peer: Peer, jobs: list[Job]) -> dict[str, Any]:
    peer.prepare(jobs)
    started = time.perf_counter()
    outputs = peer.run(jobs)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "ttft_s": outputs.ttft_s,
        "output_tokens": sum(len(ids) for ids in outputs.token_ids),
        "first_ids": [[int(token) for token in ids[:FIRST_IDS]] for ids in outputs.token_ids],
    }


def first_line(error: BaseException) -> str:
    """`ValueError: what is wrong`, in one line."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
