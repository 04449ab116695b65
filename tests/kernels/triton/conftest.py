"""Where these tests run: compiled on a GPU of capability 8.0 or more, else in Triton's interpreter on the CPU.

The interpreter has to be chosen before Triton is first imported, so it has a process of its own: without a GPU,
`test_interpreted.py` starts one over this folder, and here only the tests that need neither are collected.
"""

import importlib.util
import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
COMPILED = not INTERPRETED and torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
KERNEL_TESTS = [
    "test_attention.py",
    "test_few_rows.py",
    "test_rowwise.py",
    "test_moe.py",
    "test_graph.py",
    "test_long.py",
]

if not importlib.util.find_spec("triton"):
    collect_ignore = [*KERNEL_TESTS, "test_ahead_of_time.py", "test_interpreted.py"]
elif INTERPRETED:
    import support.triton_interpreter  # noqa: F401

    collect_ignore = ["test_ahead_of_time.py", "test_interpreted.py", "test_graph.py", "test_long.py"]
else:
    collect_ignore = ["test_interpreted.py"] if COMPILED else KERNEL_TESTS


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cuda" if COMPILED else "cpu")
