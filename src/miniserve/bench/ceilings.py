"""This machine's limits, measured: how fast it reads, copies and multiplies, and what starting an operator costs.

`measure_ceilings` takes two of them right before a benchmark, with the library, dtype and threads that the engine uses,
so that a share of the limit compares like with like. `bench_ceilings` takes the whole curves, for `results/`. Medians:
a neighbour's burst of work should not count. What a device or library cannot do is recorded as unsupported, with the
reason, and the rest goes on. Nothing here knows what a limit should be: that is the catalogue's.
"""

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from miniserve.bench.products import PRODUCTS, STORED, product_seconds
from miniserve.bench.timing import Work, seconds_per_call

READ_BYTES = {"cpu": 2**28, "cuda": 2**32}  # far beyond any cache
GEMM_SIZE = {"cpu": 1024, "cuda": 8192}
CURVE_BYTES = {"cpu": [2**power for power in range(14, 29)], "cuda": [2**power for power in range(20, 33)]}
CURVE_SIZES = {"cpu": [256, 512, 1024, 2048], "cuda": [1024, 2048, 4096, 8192, 16384]}
SKINNY_TOKENS, SKINNY_IN, SKINNY_OUT = (1, 8, 64, 256), 4096, 14336  # a batch against Llama-3-8B's up-projection
ROW_BYTES = 2**13
LEAST_READ_BYTES = 2**26
BUDGET_S = 0.1
LONGEST_PRODUCT_S = 1.0
LAUNCHES = 1000

Report = Callable[[float, str], None]


class Ceilings(NamedTuple):
    """Bytes a second read from memory, and FLOPs a second of a large matrix product."""

    read_bytes_per_s: float
    flops_per_s: float


def measure_ceilings(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> Ceilings:
    """Measure both on `device` with `dtype`. Takes a second or two on a CPU."""
    size = GEMM_SIZE[device.type]
    name = next(name for name, stored in STORED.items() if stored == dtype)
    product_s = product_seconds(name, device, size, size, size, repeats=repeats)
    return Ceilings(read_bytes_per_s(device, READ_BYTES[device.type], repeats), 2 * size**3 / product_s)


def bench_ceilings(device: torch.device, progress: Report) -> dict[str, Any]:
    """Measure the curves: under a minute.

    Args:
        device: what to measure; a CPU with as many threads as torch is set to.
        progress: told the share done and what is measured now.

    Returns:
        `read` and `copy`: per size of the buffer in bytes, bytes a second (a copy's are those read and those written);
        a buffer that fits a cache stays in it. `gemm`: per dtype and size of a square product, FLOPs a second.
        `skinny`: on a GPU, a batch of m tokens against a bf16 weight: seconds, and a second's bytes of weight and
        activations. `launch`: seconds from one tiny operator to the next, called from Python (`eager_s`) and, on a
        GPU, replayed in a graph (`graph_s`). In place of a number there may be `unsupported`, with the reason.
    """
    started = time.perf_counter()
    data: dict[str, Any] = {"device": str(device), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        data |= {"l2_bytes": properties.L2_cache_size, "memory_bytes": properties.total_memory}
    progress(0.0, "launches")
    data["launch"] = _launch(device)
    for share, name, rate in ((0.05, "read", read_bytes_per_s), (0.2, "copy", copy_bytes_per_s)):
        data[name] = []
        for size in CURVE_BYTES[device.type]:
            progress(share, f"{name}, {size / 2**20:g} MiB")
            data[name].append({"bytes": size} | _guarded(device, "bytes_per_s", partial(rate, device, size)))
    data["gemm"] = list(_gemm(device, progress))
    data["skinny"] = list(_skinny(device, progress)) if device.type == "cuda" else []
    progress(1.0, "done")
    return data | {"wall_s": time.perf_counter() - started}


def _guarded(device: torch.device, name: str, measure: Callable[[], float]) -> dict[str, Any]:
    """What `measure` returns, under `name`, or why it could not: a limit that is not there costs no other."""
    try:
        measured = {name: measure()}
        if device.type == "cuda":
            torch.cuda.empty_cache()  # graphs keep pools of their own, which would add up
        return measured
    except Exception as error:  # whatever a library raises: all of it is recorded
        return {"unsupported": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]}


def read_bytes_per_s(device: torch.device, size: int, repeats: int = 20) -> float:
    """Bytes a second while summing `size` bytes."""
    data = torch.randn(size // 4, device=device)
    if device.type == "cuda":
        # One sum of all, or one of each row: which is faster depends on size and version.
        works: list[Work] = [data.sum, lambda: data.view(-1, ROW_BYTES // 4).sum(-1)]
        return size / min(seconds_per_call([work], device, repeats=repeats, budget_s=BUDGET_S) for work in works)
    # A small buffer is read again and again in one call: otherwise the call is what is measured.
    times = max(1, LEAST_READ_BYTES // size)
    again = data.expand(times, -1)
    seconds = seconds_per_call([lambda: again.sum(-1)], device, repeats=repeats, budget_s=BUDGET_S)
    return size * times / seconds


def copy_bytes_per_s(device: torch.device, size: int) -> float:
    """Bytes a second, read and written, while copying `size` bytes."""
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds_per_call([lambda: target.copy_(source)], device, budget_s=BUDGET_S)


def _gemm(device: torch.device, progress: Report) -> Iterator[dict[str, Any]]:
    for number, dtype in enumerate(PRODUCTS[device.type]):
        rate = math.inf
        for size in CURVE_SIZES[device.type]:
            progress(0.35 + 0.55 * number / len(PRODUCTS[device.type]), f"{dtype}, {size} × {size}")
            row: dict[str, Any] = {"dtype": dtype, "size": size}
            if 2 * size**3 / rate > LONGEST_PRODUCT_S:
                row["unsupported"] = f"one product would take {2 * size**3 / rate:.1f} s"
            else:
                row |= _guarded(device, "flops_per_s", partial(_square, dtype, device, size))
                rate = row.get("flops_per_s", rate)
            yield row


def _square(dtype: str, device: torch.device, size: int) -> float:
    """FLOPs a second of a square product."""
    return 2 * size**3 / product_seconds(dtype, device, size, size, size, budget_s=BUDGET_S)


def _skinny(device: torch.device, progress: Report) -> Iterator[dict[str, Any]]:
    n, k = SKINNY_OUT, SKINNY_IN
    for m in SKINNY_TOKENS:
        progress(0.9, f"{m} tokens against a weight of {k} × {n}")
        row: dict[str, Any] = {"dtype": "bf16", "m": m, "n": n, "k": k}
        row |= _guarded(device, "seconds", partial(product_seconds, "bf16", device, m, n, k, budget_s=BUDGET_S))
        if "seconds" in row:
            row["bytes_per_s"] = 2 * (m * k + k * n + m * n) / row["seconds"]
        yield row


def _launch(device: torch.device) -> dict[str, Any]:
    tiny = torch.zeros(1, device=device)

    def loop() -> None:
        for _ in range(LAUNCHES):
            tiny.add_(1)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def called() -> float:
        # The host's clock: it is the host that sets the pace.
        return seconds_per_call([loop], torch.device("cpu"), repeats=10) / LAUNCHES

    def replayed() -> float:
        return seconds_per_call([lambda: tiny.add_(1)] * LAUNCHES, device)

    launch = {"eager_s": None, "graph_s": None} | _guarded(device, "eager_s", called)
    return launch | _guarded(device, "graph_s", replayed) if device.type == "cuda" else launch
