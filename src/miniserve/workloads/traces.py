"""Recorded arrivals: files of the Azure LLM inference traces and of Mooncake's, read line by line.

The format is told by the first line. Times become seconds since the first request. A line that cannot be understood is
an error that names it: a request left out would make the load another one. Nothing is shipped here: the files are
published by their authors, and the ones we know are recognised by their SHA-256.
"""

import datetime
import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from miniserve.errors import CorruptFileError
from miniserve.workloads.arrivals import Arrival

AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
MOONCAKE_BLOCK_SIZE = 512
ORIGINS = {
    "54e9a6d2a4bd06ba1e060304b900abbc74cbea53de96506e60fe5bb4f2277fb6": (
        "Azure LLM inference trace 2023, code (github.com/Azure/AzurePublicDataset, CC-BY)"
    ),
    "2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8": (
        "Azure LLM inference trace 2023, conversation (github.com/Azure/AzurePublicDataset, CC-BY)"
    ),
    "b8cbb061a85206d729d91cdc2981f43c9e0d99209dce588d3af5f7934408b9df": (
        "Mooncake conversation trace, FAST'25 (github.com/kvcache-ai/Mooncake, Apache-2.0)"
    ),
}


def read_trace(path: Path, *, speed: float = 1.0) -> Iterator[Arrival]:
    """The requests of a trace, in order.

    Args:
        path: a file in one of two formats. Azure's: CSV with the columns TIMESTAMP (ISO), ContextTokens,
            GeneratedTokens. Mooncake's: an object a line with `timestamp` (milliseconds), `input_length`,
            `output_length` and, if wanted, `hash_ids`, one for each 512 tokens of the prompt.
        speed: how much faster than recorded the requests come.

    Raises:
        CorruptFileError: the file cannot be read, is neither of the two, or a line is malformed or earlier than the one
            before. Names file and line.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from miniserve.workloads.traces import read_trace
        >>> with TemporaryDirectory() as folder:
        ...     trace = Path(folder, "trace.jsonl")
        ...     _ = trace.write_text('{"timestamp": 1500, "input_length": 700, "output_length": 30}')
        ...     next(read_trace(trace))
        Arrival(at_s=0.0, prompt_tokens=700, output_tokens=30, blocks=(), block_size=0, then=None)
    """
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline()
            if first.strip() == AZURE_HEADER:
                yield from _rows(path, enumerate(file, 2), _azure, speed)
            elif first.lstrip().startswith("{"):
                yield from _rows(path, enumerate(chain([first], file), 1), _mooncake, speed)
            else:
                known = f"'{AZURE_HEADER}' or a JSON object"
                raise CorruptFileError(f"{path}, line 1: a trace begins with {known}, not {first.strip()[:60]!r}")
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptFileError(f"{path} cannot be read as a trace: {error}") from error


def origin(path: Path) -> dict[str, str]:
    """`file`, `sha256`, and `origin` if it is a published trace that we know."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "sha256": digest} | ({"origin": ORIGINS[digest]} if digest in ORIGINS else {})


def _rows(
    path: Path, lines: Iterator[tuple[int, str]], parse: Callable[[str], Arrival], speed: float
) -> Iterator[Arrival]:
    start_s: float | None = None
    before_s = 0.0
    for number, line in lines:
        if not line.strip():
            continue
        try:
            arrival = parse(line)
            if arrival.prompt_tokens < 1 or arrival.output_tokens < 1:
                raise ValueError("a length is below 1")
            if start_s is None:
                start_s = before_s = arrival.at_s
            if arrival.at_s < before_s:
                raise ValueError("it is earlier than the line before")
        except (ValueError, KeyError, TypeError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else error
            raise CorruptFileError(f"{path}, line {number}: {what}: {line.strip()[:60]!r}") from error
        before_s = arrival.at_s
        yield arrival._replace(at_s=(arrival.at_s - start_s) / speed)


def _azure(line: str) -> Arrival:
    moment, prompt, output = line.split(",")
    when = datetime.datetime.fromisoformat(moment)
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.UTC)
    return Arrival(when.timestamp(), int(prompt), int(output))


def _mooncake(line: str) -> Arrival:
    row = json.loads(line)
    lengths = row["input_length"], row["output_length"]
    blocks = tuple(row.get("hash_ids", ()))
    if not all(type(number) is int for number in (*lengths, *blocks)):
        raise ValueError("a length or a hash id is not a whole number")
    if blocks and len(blocks) != -(-lengths[0] // MOONCAKE_BLOCK_SIZE):
        raise ValueError(f"{len(blocks)} hash_ids for {lengths[0]} tokens: one for each {MOONCAKE_BLOCK_SIZE}")
    at_s = float(row["timestamp"]) / 1000
    if not at_s >= 0:
        raise ValueError(f"timestamp {row['timestamp']} is below 0")
    return Arrival(at_s, *lengths, blocks, MOONCAKE_BLOCK_SIZE if blocks else 0)
