"""This machine's limits, measured: how fast it reads memory, and how fast it multiplies matrices.

Both are taken with the same library, dtype and threads that the engine uses, right before a benchmark, so that a share
of the limit compares like with like. Medians: a neighbour's burst of work should not count.
"""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

READ_BYTES = {"cpu": 2**28, "cuda": 2**32}  # far beyond any cache
GEMM_SIZE = {"cpu": 1024, "cuda": 8192}


class Ceilings(NamedTuple):
    """Bytes a second read from memory, and FLOPs a second of a large matrix product."""

    read_bytes_per_s: float
    flops_per_s: float


def measure_ceilings(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> Ceilings:
    """Measure both on `device` with `dtype`. Takes a second or two on a CPU."""
    data = torch.ones(READ_BYTES[device.type] // 4, dtype=torch.float32, device=device)
    read_s = median_seconds(data.sum, device, repeats)
    size = GEMM_SIZE[device.type]
    # Random data: a GPU draws less power on constant data and clocks higher.
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    gemm_s = median_seconds(lambda: left @ right, device, repeats)
    return Ceilings(data.nbytes / read_s, 2 * size**3 / gemm_s)


def median_seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of `work()` after one run to warm up."""
    seconds = []
    for _ in range(repeats + 1):
        _synchronize(device)
        started = time.perf_counter()
        work()
        _synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
