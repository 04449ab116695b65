"""`results/training.json`, part by part: each script here replaces its own, with its own provenance."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miniserve.bench.record import record, write_record

RESULTS = Path("results/training.json")
PLAYS = Path("artifacts/plays")
COMMAND = "python benchmarks/train/precision.py; python benchmarks/train/models.py"


def write_part(name: str, data: Mapping[str, Any], command: str) -> None:
    """Put a part in its place: its numbers, and by what and when they were measured."""
    parts = json.loads(RESULTS.read_text(encoding="utf-8"))["data"] if RESULTS.exists() else {}
    measured = record(data, command, "cpu")
    parts[name] = {key: measured[key] for key in ("device", "date", "command")} | measured["data"]
    write_record(RESULTS, parts, COMMAND, "cpu")
