"""The whole-model GPU benchmark with a toy model on a CPU: every section that needs no peer runs and is recorded."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECTIONS = ["products", "steps", "fp8", "prefill"]


def test_it_runs_and_records(tmp_path):
    out = tmp_path / "model.json"
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "gpu_model.py"),
        "--tiny",
        "--out",
        str(out),
        "--only",
        *SECTIONS,
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    record = json.loads(out.read_text())
    assert record["label"] == "recorded"
    data = record["data"]
    assert [name for name in data if name != "ceilings"] == SECTIONS
    assert not [name for name, found in data.items() if "failed" in found]
    assert all(row["tokens_per_s"] > 0 for row in data["steps"] + data["fp8"])
    # Fewer bytes of weights, the same KV.
    assert data["fp8"][0]["bytes"] < data["steps"][0]["bytes"]
    assert data["prefill"][0]["mfu"] > 0
