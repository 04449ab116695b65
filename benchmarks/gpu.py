"""The Triton kernels on this machine's GPU, each against the ceiling that should bound it and beside torch.

    python benchmarks/gpu.py                              # all sections, about two minutes on an H100
    python benchmarks/gpu.py --only ceilings,decode --budget-s 40
    python benchmarks/gpu.py --tiny                       # without a GPU: does everything run?

Writes results/<device>/gpu_kernels.json. A section has its share of the budget and returns what it has when that is
over; one that fails is recorded with its traceback, and the next goes on. What the searches need is compiled first, by
several processes; that is not in any number.
"""

# ruff: noqa: E402  what Triton is to do has to be said before it is imported

import os
import sys

TINY = "--tiny" in sys.argv
if TINY:
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported

import argparse
import multiprocessing
import shlex
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
if TINY:
    sys.path.append(str(ROOT / "tests"))
    import support.triton_interpreter  # noqa: F401  exact in bfloat16

from kernels.ceilings import ceilings
from kernels.rowwise import rowwise
from kernels.setting import Row, Section, Setting

from kernels import attention, experts
from miniserve.bench.record import device_slug, record, write_record
from miniserve.kernels.triton.configs import capability, decode_config, prefill_config

SECTIONS: dict[str, tuple[Section, float]] = {  # and their shares of the budget
    "ceilings": (ceilings, 0.08),
    "decode": (attention.decode, 0.36),
    "prefill": (attention.prefill, 0.2),
    "rowwise": (rowwise, 0.1),
    "experts": (experts.experts, 0.26),
}
COMPILERS, COMPILE_S = 12, 60.0
say = Console(stderr=True, highlight=False).print


def measure(name: str, setting: Setting) -> Row:
    """One section's rows, and its error if it had one."""
    section, started, rows = SECTIONS[name][0], time.monotonic(), []
    result: Row = {"rows": rows}
    try:
        for row in section(setting):
            rows.append(row)
            if setting.left_s < 0:
                result["cut_short_after_s"] = time.monotonic() - started
                break
    except Exception:
        result["error"] = traceback.format_exc()
        say(f"{name} failed:\n{result['error']}")
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
    return result | {"wall_s": time.monotonic() - started}


def compile_all(names: list[str]) -> Row:
    """Compile the searches' kernels into Triton's cache, in processes of their own, while nothing is measured."""
    started = time.monotonic()
    of = capability(torch.device("cuda"))
    jobs: list[tuple[Any, ...]] = []
    for name, cases, tiles in (
        ("prefill", attention.PREFILLS, [prefill_config(of, 256), *attention.PREFILL_TILES]),
        ("decode", attention.DECODES, [decode_config(of, 256), *attention.DECODE_TILES]),
    ):
        if name in names:
            different = {case.compiled_as: case for case in cases}.values()
            jobs += [(attention.compile_for, case, each) for case in different for each in dict.fromkeys(tiles)]
    if "experts" in names:
        jobs += [(experts.compile_for, tiles) for tiles in (*experts.FEW, *experts.MANY)]
    workers = min(COMPILERS, os.cpu_count() or 1)
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    futures = [pool.submit(*job) for job in jobs]
    done, late = wait(futures, timeout=COMPILE_S)
    pool.shutdown(wait=True, cancel_futures=True)
    failures = [str(future.exception())[:200] for future in done if not future.cancelled() and future.exception()]
    return {"jobs": len(jobs), "late": len(late), "failures": failures, "wall_s": time.monotonic() - started}


def shown(results: dict[str, Row]) -> Table:
    """The main figures, a line each."""
    table = Table("what", "table's tiles", "best of search", "share", "torch", title="kernels against their ceilings")
    for row in results.get("ceilings", {}).get("rows", []):
        table.add_row(row["name"], "", f"{row['rate'] / 1e12:.3f} T", "", "")
    for row in results.get("decode", {}).get("rows", []):
        name = "decode {batch} x {context}, {heads}/{kv_heads}/{dim}, block {slots}, {kv}".format(**row)
        tiles = "{tile}/{warps}/{stages}/{splits}".format(**row["best"])
        table.add_row(name, _us(row, "table"), f"{_us(row, 'best')} {tiles}", _shares(row, "share"), "")
    for row in results.get("prefill", {}).get("rows", []):
        name = "prefill {batch} x {new} of {context}, {heads}/{kv_heads}/{dim}, block {slots}".format(**row)
        tiles = "{rows}/{tile}/{warps}/{stages}".format(**row["best"])
        peers = ", ".join(f"{v / 1e12:.0f} T" if isinstance(v, float) else "none" for v in row["torch"].values())
        best = f"{_us(row, 'best')} {row['best']['flops_per_s'] / 1e12:.0f} T {tiles}"
        table.add_row(name, _us(row, "table"), best, _shares(row, "share"), peers)
    for row in results.get("rowwise", {}).get("rows", []):
        share = _percent(row["ours"]["share"])
        table.add_row(f"{row['name']} {row['tokens']}", _us(row, "ours"), "", share, _us(row, "torch"))
    for row in results.get("experts", {}).get("rows", []):
        tiles = "{rows}/{columns}/{depth}/{warps}/{stages}".format(**row["best"])
        shares = _shares(row, "bytes_share") + " " + _shares(row, "flops_share")
        peers = f"{_us(row, 'grouped_mm')}, loop {_us(row, 'loop')}"
        peers += f", E4M3 {_us(row, 'e4m3')}, INT8 {_us(row, 'int8')}"
        table.add_row(f"experts {row['tokens']}", _us(row, "table"), f"{_us(row, 'best')} {tiles}", shares, peers)
    return table


def _us(row: Row, key: str) -> str:
    return f"{row[key]['us']:.1f} us" if "us" in row.get(key, {}) else "none"


def _shares(row: Row, name: str) -> str:
    return "/".join(_percent(row[key][name]) for key in ("table", "best") if key in row)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def main() -> None:
    """Run the sections asked for, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, by comma")
    parser.add_argument("--budget-s", type=float, default=100.0, help="seconds of measuring over all sections")
    parser.add_argument("--tiny", action="store_true", help="small shapes in Triton's interpreter, on the CPU")
    parser.add_argument("--no-compile", action="store_true", help="leave compilation to the first use")
    parser.add_argument("--out", type=Path, help="where the record goes")
    given = parser.parse_args()
    names = [name.strip() for name in given.only.split(",")]
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"no section {', '.join(unknown)}: there is {', '.join(SECTIONS)}")
    if not TINY and not torch.cuda.is_available():
        parser.error("there is no GPU here: --tiny runs the sections in Triton's interpreter")
    setting = Setting(torch.device("cpu" if TINY else "cuda"), TINY)
    results: dict[str, Row] = {}
    if not TINY and not given.no_compile:
        results["compile"] = compile_all(names)
        say(f"compiled in {results['compile']['wall_s']:.0f} s")
    whole = sum(SECTIONS[name][1] for name in names)
    for name in names:
        setting.ends = time.monotonic() + given.budget_s * SECTIONS[name][1] / whole
        results[name] = measure(name, setting)
        say(f"{name}: {len(results[name]['rows'])} rows in {results[name]['wall_s']:.1f} s")
    command = shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]])
    out = given.out or (None if TINY else ROOT / "results" / device_slug() / "gpu_kernels.json")
    if out is not None:
        write_record(out, results, command)
    Console(width=150, highlight=False).print(shown(results))
    say(f"device: {record({}, command)['device']}; {'not written' if out is None else out}")
    if any("error" in result for result in results.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
