"""A benchmark's result with its provenance, in the form that `miniserve.notebook.load_results` reads."""

import datetime
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miniserve.hardware.this_machine import num_cores, these_versions, this_device


def record(
    data: Mapping[str, Any], command: str, kind: str = "auto", *, simulated: str | None = None
) -> dict[str, Any]:
    """`data` as measured by this process, now, or as it was computed by a model of other hardware.

    Args:
        data: plain numbers, names, lists and mappings.
        command: what reproduces it.
        kind: "cpu" if it was measured on the CPU of a machine that may have a GPU.
        simulated: the hardware, if nothing was measured: the label says so, and this machine is not named.

    Example:
        >>> from miniserve.bench.record import record
        >>> sorted(record({"tokens_per_s": 17.0}, command="miniserve bench throughput"))
        ['command', 'data', 'date', 'device', 'label', 'versions']
    """
    torch, triton = sys.modules.get("torch"), sys.modules.get("triton")
    versions = these_versions()
    if torch is not None and torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    if triton is not None:
        versions["triton"] = triton.__version__
    measured_on = f"{this_device('cpu')}, {num_cores()} cores" if kind == "cpu" else this_device()
    return {
        "label": "simulated" if simulated else "recorded",
        "device": simulated or measured_on,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command,
        "versions": versions,
        "data": dict(data),
    }


def write_record(
    path: Path, data: Mapping[str, Any], command: str, kind: str = "auto", *, simulated: str | None = None
) -> None:
    """Write a `record` of these to `path`, in one step: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(record(data, command, kind, simulated=simulated), indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def device_slug(kind: str = "auto") -> str:
    """`this_device(kind)` as a folder's name below `results/`: "NVIDIA H100 80GB HBM3" is nvidia-h100-80gb-hbm3."""
    return re.sub(r"[^a-z0-9]+", "-", this_device(kind).lower()).strip("-")
