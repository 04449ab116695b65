"""`results/training.json`, part by part: each script here replaces its own, with its own provenance."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from miniserve.bench.record import record, write_record

RESULTS = Path("results/training.json")
PLAYS = Path("artifacts/plays")
COMMAND = "python benchmarks/train/plays.py artifacts/plays, then each part's own command"


def product_flops_per_cpu_s(size: int = 1024, rounds: int = 20) -> float:
    """What a large float32 product reaches on one core, by the core's own time: the best of some rounds."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    taken = []
    for _ in range(rounds):
        begin = time.process_time()
        torch.matmul(a, b)
        taken.append(time.process_time() - begin)
    return 2 * size**3 / min(taken)


def write_part(name: str, data: Mapping[str, Any], command: str) -> None:
    """Put a part in its place: its numbers, and by what and when they were measured."""
    parts = json.loads(RESULTS.read_text(encoding="utf-8"))["data"] if RESULTS.exists() else {}
    measured = record(data, command, "cpu")
    parts[name] = {key: measured[key] for key in ("device", "date", "command")} | measured["data"]
    write_record(RESULTS, parts, COMMAND, "cpu")
