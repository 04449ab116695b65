"""Matrix products timed in each number format that a device multiplies: as a linear layer does them, x · Wᵀ.

Random data: a GPU draws less power on constant data and clocks higher. On a GPU the operands are several sets in turn,
together larger than its L2 cache, so that weights come from memory, as in a model. Formats go by the catalogue's names.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from miniserve.bench.timing import seconds_per_call
from miniserve.errors import InvalidRequestError

STORED: Mapping[str, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,  # of which the tensor cores keep 10 bits of mantissa
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
}
PRODUCTS: Mapping[str, Sequence[str]] = {"cpu": ("fp32", "bf16", "fp16", "int8"), "cuda": tuple(STORED)}
MOST_SETS = 64


def product_seconds(
    dtype: str, device: torch.device, m: int, n: int, k: int, *, repeats: int = 20, budget_s: float = math.inf
) -> float:
    """Seconds of one product [m, k] · [n, k]ᵀ.

    fp32 is exact: TF32 is off. fp8 has one scale a tensor, "fast accumulation" and a bfloat16 result; int8 gives int32.

    Args:
        dtype: one of `STORED`.
        device: where.
        m, n, k: rows of activations, of the weight, and the length summed over.
        repeats: passes that are timed.
        budget_s: host seconds after which no further pass is started.

    Raises:
        InvalidRequestError: there is no such dtype.
        RuntimeError: torch's, where the device or this version does not multiply it.
    """
    if dtype not in STORED:
        raise InvalidRequestError(f"no number format '{dtype}'; there is {', '.join(STORED)}")
    first = _random(STORED[dtype], device, m, k), _random(STORED[dtype], device, n, k)
    sets = [first, *((first[0].clone(), first[1].clone()) for _ in range(_num_sets(device, first) - 1))]
    with _precision("high" if dtype == "tf32" else "highest"):
        works = [_product(x, weight) for x, weight in sets]
        return seconds_per_call(works, device, repeats=repeats, budget_s=budget_s)


def _random(dtype: torch.dtype, device: torch.device, rows: int, columns: int) -> torch.Tensor:
    if dtype == torch.int8:
        return torch.randint(-128, 128, (rows, columns), dtype=dtype, device=device)
    return torch.randn(rows, columns, device=device).to(dtype)


def _num_sets(device: torch.device, operands: tuple[torch.Tensor, torch.Tensor]) -> int:
    if device.type != "cuda":
        return 1
    cache = 3 * torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, min(MOST_SETS, math.ceil(cache / sum(operand.nbytes for operand in operands))))


def _product(x: torch.Tensor, weight: torch.Tensor) -> Callable[[], torch.Tensor]:
    if x.dtype == torch.int8:
        return lambda: torch._int_mm(x, weight.t())
    if x.dtype == torch.float8_e4m3fn:
        one = torch.ones((), device=x.device)
        return lambda: torch._scaled_mm(x, weight.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
    return lambda: x @ weight.t()


@contextmanager
def _precision(wanted: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(wanted)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
