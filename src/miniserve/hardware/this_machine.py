"""What this process runs on: the device's name and the versions that a measurement should carry. Torch-free.

A library that is not loaded has had no part in a measurement, so it is not asked.
"""

import os
import platform
import sys
from pathlib import Path


def this_device() -> str:
    """The GPU if torch is loaded and sees one, else the processor's name."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
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
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
