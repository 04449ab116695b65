"""The ceilings that the other sections are compared with: memory copied and read, products in bfloat16 and E4M3."""

from collections.abc import Iterator

import torch

from kernels.setting import Row, Setting
from miniserve.bench.products import product_seconds


def ceilings(setting: Setting) -> Iterator[Row]:
    """Bytes a second (a copy's are read and written) and FLOPs a second."""
    size = 2**16 if setting.tiny else 2**30
    source = torch.randn(size // 4, device=setting.device)
    target = torch.empty_like(source)
    rates = {"copy_bytes_per_s": 2 * size / setting.time([lambda: target.copy_(source)])}
    rates["read_bytes_per_s"] = size / setting.time([lambda: source.view(-1, 2048).sum(-1)])
    side = 64 if setting.tiny else 8192
    for name in ("bf16",) if setting.tiny else ("bf16", "fp8"):
        seconds = product_seconds(name, setting.device, side, side, side, budget_s=0.5)
        rates[f"{name}_flops_per_s"] = 2 * side**3 / seconds
    rates["bytes_per_s"] = max(rates["copy_bytes_per_s"], rates["read_bytes_per_s"])
    setting.ceilings = rates
    yield from ({"name": name, "rate": rate} for name, rate in rates.items())
