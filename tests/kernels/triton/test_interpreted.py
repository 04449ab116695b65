"""The kernels' tests in Triton's interpreter, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path


def test_kernels_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", str(Path(__file__).parent), "-x", "-q", "-p", "no:randomly"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert "skipped" not in run.stdout
