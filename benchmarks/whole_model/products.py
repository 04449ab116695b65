"""Few rows times each of a large model's matrices: cuBLAS, and ours in several tilings."""

import torch

from miniserve.bench.timing import seconds_per_call
from miniserve.kernels.formats import E4M3, INT8
from miniserve.kernels.linear_weight import LinearWeight
from miniserve.kernels.scaled_gemm import quantise_rows
from whole_model.setting import Row, Setting

# Columns, depth, warps and stages.
SINGLE = [(1, 2048, 4, 3), (2, 1024, 4, 2), (1, 4096, 4, 2), (2, 2048, 4, 2), (2, 4096, 8, 2)]
SEVERAL = [(16, 256, 4, 4), (32, 128, 4, 5), (32, 256, 4, 4), (32, 512, 4, 3), (64, 128, 4, 4), (128, 128, 8, 3)]
DOZENS = [(32, 128, 4, 4), (64, 64, 4, 5), (64, 128, 4, 3), (64, 128, 4, 4), (128, 128, 8, 3)]


def products(setting: Setting) -> list[Row]:
    """W of each of the large model's layers times 1 to 64 rows: cuBLAS, and ours in a few tilings."""
    config, found = setting.large, []
    hidden, inner = config.hidden_size, config.intermediate_size
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    shapes = [(heads, hidden), (hidden, hidden), (2 * inner, hidden), (hidden, inner), (config.vocab_size, hidden)]
    for (outputs, depth), rows in ((shape, rows) for shape in shapes for rows in (1, 4, 8, 16, 64)):
        for form in ("bfloat16", "e4m3", "int8"):
            found.append(_product(setting, outputs, depth, rows, form))
    return found


def _product(setting: Setting, outputs: int, depth: int, rows: int, form: str) -> Row:
    x = torch.randn(rows, depth, device=setting.device, dtype=setting.dtype)
    weight = torch.randn(outputs, depth, device=setting.device, dtype=setting.dtype)
    eight_bits = {"e4m3": E4M3, "int8": INT8}.get(form)
    bytes_each = outputs * depth * (1 if eight_bits else setting.dtype.itemsize)
    copies = 1 if setting.tiny else max(2, int(2e8 // bytes_each))
    row: Row = {"n": outputs, "k": depth, "rows": rows, "form": form}
    scales = None
    searched = rows <= 16 or form == "int8"
    if eight_bits:
        quantised = quantise_rows(weight, eight_bits)
        weights, scales = [quantised.data.clone() for _ in range(copies)], quantised.scales
        if not searched or setting.tiny:
            ops, matrices = setting.ops, [LinearWeight(each, scales) for each in weights]
            seconds = seconds_per_call([lambda w=w: ops.linear(x, w) for w in matrices], setting.device, repeats=7)
            return row | {"ours_bytes_per_s": bytes_each / seconds}
    else:
        weights = [weight.clone() for _ in range(copies)]
        library = [lambda w=w: torch.nn.functional.linear(x, w) for w in weights]
        row["cublas_bytes_per_s"] = bytes_each / seconds_per_call(library, setting.device, repeats=7)
    if searched and not setting.tiny:
        from miniserve.kernels.triton.configs import FewRowsConfig
        from miniserve.kernels.triton.few_rows import few_rows_linear

        tried = {}
        tiles = SINGLE if rows == 1 else SEVERAL if rows <= 16 else DOZENS
        configs = [FewRowsConfig(*tile) for tile in tiles]
        for config in configs:
            try:
                calls = [lambda w=w, c=config: few_rows_linear(x, w, scales, None, c) for w in weights]
                tried[str(config)] = bytes_each / seconds_per_call(calls, setting.device, repeats=5)
            except Exception as error:  # a tiling that does not fit is a result too
                tried[str(config)] = repr(error)[:80]
        numbers = {name: rate for name, rate in tried.items() if isinstance(rate, float)}
        best = max(numbers, key=numbers.__getitem__, default=None)
        row |= {"tried": tried, "best": best, "ours_bytes_per_s": numbers.get(best or "", 0.0)}
    return row
