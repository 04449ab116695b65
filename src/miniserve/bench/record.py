"""A benchmark's result with its provenance, in the form that `miniserve.notebook.load_results` reads."""

import datetime
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miniserve.hardware.this_machine import num_cores, these_versions, this_device


def record(data: Mapping[str, Any], command: str, kind: str = "auto") -> dict[str, Any]:
    """`data` as measured by this process, now.

    Args:
        data: plain numbers, names, lists and mappings.
        command: what reproduces it.
        kind: "cpu" if it was measured on the CPU of a machine that may have a GPU.
    """
    torch, triton = sys.modules.get("torch"), sys.modules.get("triton")
    versions = these_versions()
    if torch is not None and torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    if triton is not None:
        versions["triton"] = triton.__version__
    return {
        "label": "recorded",
        "device": f"{this_device('cpu')}, {num_cores()} cores" if kind == "cpu" else this_device(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command,
        "versions": versions,
        "data": dict(data),
    }


def write_record(path: Path, data: Mapping[str, Any], command: str, kind: str = "auto") -> None:
    """Write `record(data, command, kind)` to `path`, in one step: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(record(data, command, kind), indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def device_slug(kind: str = "auto") -> str:
    """`this_device(kind)` as a folder's name below `results/`: "NVIDIA H100 80GB HBM3" is nvidia-h100-80gb-hbm3."""
    return re.sub(r"[^a-z0-9]+", "-", this_device(kind).lower()).strip("-")
