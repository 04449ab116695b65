"""What this process runs on: the device's name and the versions that a measurement should carry. Torch-free.

A library that is not loaded has had no part in a measurement, so it is not asked.
"""

import math
import os
import platform
import sys
from pathlib import Path

import psutil


def this_device(kind: str = "auto") -> str:
    """The GPU if torch is loaded and sees one, else the processor's name; of the kind "cpu" always the latter."""
    torch = sys.modules.get("torch")
    if kind != "cpu" and torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def these_versions() -> dict[str, str]:
    """Python's version, and those of the numerical libraries that are loaded."""
    versions = {"python": platform.python_version()}
    for module in ("torch", "numpy"):
        if module in sys.modules:
            versions[module] = str(sys.modules[module].__version__)
    return versions


def num_cores() -> int:
    """Physical CPU cores that this process may use: of those it is bound to, what its container is given.

    More threads than that only wait for each other.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or usable
    quota = cpu_quota()
    return max(1, min(usable, physical, usable if quota is None else math.ceil(quota)))


def cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """CPUs' worth of time that the control group at `root` allows, None for all. Both versions of Linux's."""
    try:
        quota, period = (root / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            quota, period = (
                (root / "cpu" / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period")
            )
        except OSError:
            return None
    return int(quota) / int(period) if quota.strip() not in {"max", "-1"} else None


def instruction_sets() -> frozenset[str]:
    """What the processor says it can do, in the system's words ("avx2", "amx_bf16"); nothing where it does not say."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            first = file.read(16384).partition("\n\n")[0]  # one processor's lines: they are alike
    except OSError:
        return frozenset()
    lines = (line.partition(":") for line in first.splitlines())
    return frozenset(
        word for name, _, words in lines if name.strip() in {"flags", "Features"} for word in words.split()
    )
