"""What of this machine's CPU matters to a comparison. Standard library only."""

import os
from pathlib import Path

INTERESTING = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


def instruction_sets() -> list[str]:
    """Those of the vector extensions above that the CPU has; empty where the system does not say."""
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return []
    return [name for name in INTERESTING if name in words]


def has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16; others emulate it."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(instruction_sets()))


def usable_cpus() -> list[int]:
    """The CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def physical_cores() -> int:
    """Cores behind the usable CPUs: two hardware threads of one core count once."""
    cores = set()
    for cpu in usable_cpus():
        try:
            text = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text(encoding="utf-8")
        except OSError:
            text = str(cpu)
        cores.add(text.strip())
    return len(cores)
