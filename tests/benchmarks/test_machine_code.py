"""The record of machine code: read from real disassembly, and its counts add up to the tile's product."""

import importlib
import sys
from pathlib import Path

import pytest

from miniserve.notebook import load_results

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("machine_code")
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_one_mma_becomes_one_instruction(script):
    assert script.assembled(75)["instruction"].startswith("HMMA.1688")
    assert script.assembled(80)["instruction"].startswith("HMMA.16816")


def test_shapes_are_read_from_the_instruction_or_its_descriptor(script):
    assert script.shape("fma.rn.f32", "") == (1, 1, 1, 1)
    assert script.shape("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32", "") == (32, 16, 8, 32)
    assert script.shape("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16", "") == (128, 64, 64, 16)
    ptx = "mov.b32 \t%r68, 135266320;\n@%p1 tcgen05.mma.cta_group::1.kind::f16 [ %r2 + 0 ], %rd29, %rd30, %r68, %p11;"
    assert script.shape("tcgen05.mma.cta_group::1.kind::f16", ptx) == (1, 128, 64, 16)
    with pytest.raises(RuntimeError, match="descriptor"):
        script.shape("tcgen05.mma.cta_group::1.kind::f16", "")


def test_the_recorded_counts_make_whole_steps_of_the_loop():
    recorded = load_results("machine_code")
    rows, columns, depth = recorded["kernel"]["tile"]
    threads = 32 * recorded["kernel"]["warps"]
    compiled = [row for row in recorded["compiled"] if "refused" not in row]
    assert {row["architecture"] for row in compiled} == {"sm_75", "sm_80", "sm_89", "sm_90", "sm_100", "sm_120"}
    for row in compiled:
        # tcgen05 is issued by one thread for all; the others by all warps, each for its part of the tile
        issues = 1 if row["ptx"].startswith("tcgen05") else threads // row["issued_by_threads"]
        steps = row["count"] * issues * row["flops_per_instruction"] / (2 * rows * columns * depth)
        assert steps in (1, 2), row
    assert all("not supported in this architecture" in r["refused"] for r in recorded["compiled"] if "refused" in r)
