"""Whole decode steps, prefill and a serving workload on one NVIDIA GPU, as shares of its measured limits.

    python benchmarks/gpu_model.py [--only steps workload ...] [--tiny] [--out FILE]

Weights are random: speed does not depend on their values, and correctness is what the tests are for. Limits are
measured first, in the same run. Every section is guarded: one that fails is recorded with its traceback, and the next
goes on. `--tiny` runs all of it on a CPU with a toy model, to see that it works.

Sections: products (few rows, ours beside cuBLAS), steps (decode, by batch size and by what launches it), fp8 and int8
(the same with weights of 8 bits), mixture (the same of Qwen3-30B-A3B's shape), prefill, generate (transformers with a
static cache, batch 1), workload (256 requests of 100 to 1024 tokens in and out, an engine of Qwen3-0.6B's shape beside
transformers' continuous batching).
"""

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from whole_model.products import products
from whole_model.setting import Setting, free
from whole_model.steps import fp8, int8, mixture, prefill, steps
from whole_model.workload import generate, workload

from miniserve.bench.record import device_slug, write_record

SECTIONS: dict[str, Callable[[Setting], Any]] = {
    each.__name__: each for each in (products, steps, fp8, int8, mixture, prefill, generate, workload)
}


def guarded(section: Callable[[], Any], name: str) -> Any:
    """A section's result, or its traceback."""
    started = time.perf_counter()
    try:
        with torch.inference_mode():
            found = section()
    except Exception:
        found = {"failed": traceback.format_exc()}
        print(found["failed"], file=sys.stderr, flush=True)
    print(f"{name}: {time.perf_counter() - started:.1f} s", flush=True)
    free()
    return found


def main() -> None:
    """Run the sections and write what came of them, after each of them anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    setting = Setting(arguments.tiny)
    out = arguments.out or Path("results") / device_slug() / "model.json"
    found = {"ceilings": guarded(setting.ceilings, "ceilings")}
    for name in arguments.only:
        found[name] = guarded(lambda section=SECTIONS[name]: section(setting), name)
        write_record(out, found, "python " + " ".join(sys.argv))


if __name__ == "__main__":
    main()
