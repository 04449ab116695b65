"""Fit `miniserve.hardware.efficiency`'s curves to measured kernel timings, and say how well they do on others.

    python benchmarks/fit_kernel_timings.py --data DIR [--write]

DIR holds `a100_sxm`, `h100_sxm` and `b200_sxm`, the Parquet files of the operator database of NVIDIA's AIConfigurator
(github.com/ai-dynamo/aiconfigurator, Apache-2.0): TensorRT-LLM's kernels and NCCL, timed on those devices. Needs
pyarrow. Every second timing, drawn at random with a fixed seed, is used to fit; the error is that on the rest. The fit
minimises the mean absolute log ratio, one parameter at a time, up or down by a shrinking factor: no library, and the
same result everywhere.
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import parquet

from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.cost import Operator, Parts, attention, collective, expected_experts, gemm, moe
from miniserve.hardware.efficiency import FITTED, Curve, Device
from miniserve.hardware.shape import Experts, Precision, Shape

FOLDERS = {"a100-80": "a100_sxm", "h100": "h100_sxm", "b200": "b200_sxm"}
FORMATS = {"bfloat16": "bf16", "fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4"}
ROWS_TO_FIT = 6000
SMALLEST_STEP = 0.01
LARGEST_GROUP = 16  # query heads to a KV head: beyond what models have, other and far slower kernels were timed
NUMBERS = [name for name in Operator._fields if name not in {"name", "kind", "format", "peak"}]

#: Bounds of a parameter. Fractions end at 1: above, the peak or the bandwidth would not be one.
BOUNDS = {
    "launch_s": (1e-7, 1e-3), "compute": (0.005, 1), "memory": (0.02, 1), "sharpness": (1, 20), "step_s": (1e-15, 1e-3),
    "knee": (1, 1e9), "hop_s": (1e-9, 1e-4), "softmax": (0.1, 1e3), "tile": (1, 1e4),
}  # fmt: skip
#: What is free to be fitted, and where the search starts.
START = {
    "gemm": Curve(3e-6, 0.7, 0.8, 2, 1e-10),
    "prefill_attention": Curve(1e-5, 0.6, 0.7, 2, 1e-9, softmax=30),
    "decode_attention": Curve(1e-5, 0.3, 0.9, 2, 3e-8, 256, tile=256),
    "moe": Curve(3e-5, 0.5, 0.7, 2, 1e-7),
    "collective": Curve(5e-6, memory=0.7, step_s=1e-11, knee=1e6, hop_s=1e-6),
}


@dataclass(frozen=True)
class Timings:
    """All timings of one kind of operator in one format: an operator of arrays, and seconds."""

    device: str
    kind: str
    format: str
    operator: Operator
    seconds: np.ndarray

    def halves(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices to fit with and indices held out."""
        order = np.random.default_rng(0).permutation(len(self.seconds))
        return order[: len(order) // 2], order[len(order) // 2 :]

    def some(self, rows: np.ndarray) -> Operator:
        """The operator of these rows."""
        return self.operator._replace(**{name: getattr(self.operator, name)[rows] for name in NUMBERS})


def error(curve: Curve, timings: Timings, rows: np.ndarray, device: Device) -> float:
    """Median absolute error on these rows, as a fraction of the timing."""
    seconds = timings.seconds[rows]
    return float(np.median(np.abs(curve.seconds(timings.some(rows), device) - seconds) / seconds))


def fit(timings: Timings, device: Device) -> Curve:
    """The best curve for the half that is for fitting."""
    rows = timings.halves()[0][:ROWS_TO_FIT]
    operator, seconds = timings.some(rows), timings.seconds[rows]
    best = START.get(timings.kind, START["collective"])
    free = [f.name for f in fields(Curve) if getattr(best, f.name) != f.default]

    def loss(curve: Curve) -> float:
        return float(np.abs(np.log(curve.seconds(operator, device) / seconds)).mean())

    lowest, step = loss(best), 0.5
    while step > SMALLEST_STEP:
        before = lowest
        for name in free:
            for factor in (np.exp(step), np.exp(-step)):
                moved = replace(best, **{name: float(np.clip(getattr(best, name) * factor, *BOUNDS[name]))})
                if (found := loss(moved)) < lowest - 1e-6:
                    best, lowest = moved, found
                    break
        if lowest == before:
            step /= 2
    return replace(best, **{name: float(f"{getattr(best, name):.3g}") for name in free})


def load(folder: Path) -> Iterator[Timings]:
    """Every kind and format that is fitted, of all devices."""
    for device, name in FOLDERS.items():
        for kind, file, read in (
            ("gemm", "gemm", read_gemm),
            ("prefill_attention", "context_attention", read_prefill),
            ("decode_attention", "generation_attention", read_decode),
            ("moe", "moe", read_moe),
            ("", "nccl", read_nccl),
            ("all_reduce", "custom_allreduce", read_custom),
        ):
            newest = sorted((folder / name).glob(f"{file}_perf.*.parquet"))[-1]
            found: dict[tuple[str, str], list[tuple[Operator, float]]] = {}
            for row in parquet.read_table(newest).to_pylist():
                if (got := read(row)) is not None:
                    format, operator = got
                    found.setdefault((kind or operator.kind, format), []).append((operator, row["latency"] / 1e3))
            for (found_kind, format), pairs in sorted(found.items()):
                operators = [operator for operator, _ in pairs]
                arrays = {n: np.array([getattr(o, n) for o in operators], float) for n in NUMBERS}
                seconds = np.array([second for _, second in pairs])
                yield Timings(device, found_kind, format, operators[0]._replace(**arrays), seconds)


Row = dict[str, Any]
Read = tuple[str, Operator] | None


def read_gemm(row: Row) -> Read:
    """bfloat16, FP8 with a scale a tensor or a block, NVFP4: the latter three with what quantizes activations."""
    if (format := FORMATS.get(row["gemm_dtype"])) is None:
        return None
    size = Precision.of(format).weight_bytes
    return format, gemm("", format, row["m"], row["n"], row["k"], weight_bytes=size, activation_bytes=2)


def read_prefill(row: Row) -> Read:
    """Causal, without a window, computed in bfloat16, over KV in bfloat16 or FP8."""
    if row["window_size"] or row["isl"] < 2 or row["attn_dtype"] != "bfloat16" or row["kernel_source"] != "torch_flow":
        return None
    batch, length = row["batch_size"], row["isl"]
    parts = Parts(batch, batch * length, batch * length, batch * length * (length + 1) / 2, length)
    return _attention("prefill_attention", row, parts)


def read_decode(row: Row) -> Read:
    """As prefill. On the A100, grouped heads were timed at up to 1.6 times the peak bandwidth: those are left out."""
    heads, kv_heads = row["num_heads"], row["num_key_value_heads"]
    if row["window_size"] or row["kernel_source"] != "torch_flow" or heads > LARGEST_GROUP * kv_heads:
        return None
    if "A100" in row["device"] and heads != kv_heads:
        return None
    batch, context = row["batch_size"], row["step"] + 1
    return _attention("decode_attention", row, Parts(batch, batch, batch * context, batch * context, context))


def _attention(kind: str, row: Row, parts: Parts) -> tuple[str, Operator]:
    shape = Shape(1, 1, row["num_heads"], row["num_key_value_heads"], row["head_dim"], 1, 1)
    format = FORMATS[row["kv_cache_dtype"]]
    return format, attention(kind, shape, Precision.of("bf16", format), parts)


def read_moe(row: Row) -> Read:
    """Gated experts under an even load; of the A100 there is a skewed one alone, of exponent 1.01."""
    format, a100 = FORMATS.get(row["moe_dtype"]), "A100" in row["device"]
    wanted = "power_law_1.01" if a100 else "balanced"
    # The general kernels: not those for non-gated experts, nor those for few tokens alone.
    if format is None or row["distribution"] != wanted or row["kernel_source"].endswith(("nongated", "min_latency")):
        return None
    experts = Experts(row["num_experts"], row["topk"], row["inter_size"])
    held, arrivals = experts.count / row["moe_ep_size"], row["num_tokens"] * experts.per_token / row["moe_ep_size"]
    met = expected_experts(experts, row["num_tokens"]) / row["moe_ep_size"] if a100 else min(held, max(1, arrivals))
    return format, moe(
        Precision.of(format), row["hidden_size"], experts, arrivals, held=held, met=met, tensor=row["moe_tp_size"]
    )


def read_nccl(row: Row) -> Read:
    """NCCL, elements of two bytes."""
    kind = {"alltoall": "all_to_all"}.get(row["op_name"], row["op_name"])
    if row["nccl_dtype"] != "half":
        return None
    return "nccl", collective(kind, 2 * row["message_size"], row["num_gpus"])


def read_custom(row: Row) -> Read:
    """TensorRT-LLM's own all-reduce."""
    return "custom", collective("all_reduce", 2 * row["message_size"], row["num_gpus"])


HEADER = """\
# How close kernels come to the roofline: parameters of miniserve.hardware.efficiency.Curve, by device, operator and
# format. Written by benchmarks/fit_kernel_timings.py; `error` is the median absolute error, as a fraction, on the half
# of the `rows` timings that the fit did not see.
# Fitted to timings of TensorRT-LLM's kernels and of NCCL in the operator database of NVIDIA's AIConfigurator
# (https://github.com/ai-dynamo/aiconfigurator), Apache License 2.0. The timings themselves are not part of this file.
# Fractions are of the peaks and bandwidths in catalog.toml.
"""


def main() -> None:
    """Fit all, print the errors and, if asked to, write the parameters."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with a100_sxm, h100_sxm and b200_sxm")
    parser.add_argument("--write", action="store_true", help=f"write {FITTED.name}")
    arguments = parser.parse_args()
    text = HEADER
    for timings in load(arguments.data):
        device = load_catalog().accelerator(timings.device)
        curve = fit(timings, device)
        held_out = error(curve, timings, timings.halves()[1], device)
        print(f"{timings.device:8} {timings.kind:18} {timings.format:10} {len(timings.seconds):6} rows {held_out:6.1%}")
        values = {name: value for name, value in asdict(curve).items() if value != getattr(Curve(), name)}
        values |= {"error": float(f"{held_out:.3g}"), "rows": len(timings.seconds)}
        text += f"\n[devices.{timings.device}.{timings.kind}.{timings.format}]\n"
        text += "".join(f"{name} = {value!r}\n" for name, value in values.items())
    if arguments.write:
        FITTED.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
