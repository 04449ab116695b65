"""The GPU benchmark runs as a whole, in Triton's interpreter, and writes what the book reads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from miniserve.notebook import load_results

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def test_all_sections_run(tmp_path):
    pytest.importorskip("triton", reason="the package triton is not installed")
    command = [sys.executable, str(SCRIPT), "--tiny", "--out", str(tmp_path / "gpu_kernels.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    data = load_results("gpu_kernels", tmp_path).data
    assert set(data) == {"ceilings", "decode", "prefill", "rowwise", "experts"}
    for section in data.values():
        assert section["rows"]
        assert not any(row.get("failed") for row in section["rows"])
    decode = data["decode"]["rows"][0]
    nbytes = 2 * 2 * (40 * 2 * 2 + 2 * 4) * 64  # 2 sequences of 40 tokens; keys and values, queries and outputs
    assert decode["best"]["bytes_per_s"] * decode["best"]["us"] / 1e6 == pytest.approx(nbytes)
