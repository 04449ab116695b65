"""Building the library: once for a machine, by one process at a time, and what happens where it cannot be."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

LOAD = """
import time, torch
from miniserve.kernels.cpu import binding
started = time.perf_counter()
reason = binding.unavailable()
print("seconds", time.perf_counter() - started)
print("reason", reason)
"""
RUNTIMES = r"""
import re
maps = open("/proc/self/maps").read()
print("runtimes", len(set(re.findall(r"/\S*/lib(?:gomp|iomp|omp)\S*", maps))))
"""
COMPUTE = """
import torch
from miniserve.kernels import reference
from miniserve.kernels.cpu import ops
from miniserve.kernels.groups import Groups
from miniserve.kernels.linear_weight import LinearWeight
x, weight = torch.randn(3, 64), torch.rand(64)
assert torch.equal(ops.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))
assert torch.equal(ops.add_rms_norm(x.clone(), x, weight, 1e-5), reference.rms_norm(x + x, weight, 1e-5))
assert torch.equal(ops.silu_mul(x), reference.silu_mul(x))
assert torch.equal(ops.argmax(x), x.argmax(-1))
k_cache, v_cache, q = torch.randn(4, 8, 2, 16), torch.randn(4, 8, 2, 16), torch.randn(2, 4, 16)
lists = [torch.tensor(x, dtype=torch.int32) for x in ([0, 1, 2], [9, 3], [[2, 0], [1, 0]])]
arguments = q, k_cache, v_cache, *lists
assert torch.equal(ops.paged_attention(*arguments), reference.paged_attention(*arguments))
turned = ops.rope_store(torch.randn(2, 8, 16), torch.ones(2, 8), torch.zeros(2, 8), k_cache, v_cache, torch.tensor([5, -1]))
assert turned.shape == (2, 4, 16)
for bits in (None, 8, 4):
    weight = torch.randn(16, 64)
    packed = LinearWeight.packed(Groups.rounding(weight, bits)) if bits else LinearWeight(weight)
    assert torch.allclose(ops.linear(x, packed), x @ packed.dense().T, atol=1e-5)
print("computed")
"""


def start(code, cache, **environment):
    environment = {**os.environ, "MINISERVE_CACHE": str(cache), "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def said(process):
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    return dict(line.split(" ", 1) for line in out.splitlines() if " " in line) | {"all": out}


@pytest.fixture(scope="module")
def built(tmp_path_factory, compiled):
    """A cache in which two processes that started together have built the library."""
    cache = tmp_path_factory.mktemp("cache")
    both = [start(LOAD, cache) for _ in range(2)]
    assert [said(process)["reason"] for process in both] == ["None", "None"]
    return cache


def libraries(cache):
    return [path for path in (cache / "kernels").iterdir() if path.is_dir()]


def test_two_processes_build_once_and_leave_nothing_else(built):
    assert len(libraries(built)) == 1
    assert sorted(path.name for path in libraries(built)[0].iterdir()) == ["kernels.sha256", "kernels.so"]


def test_the_second_start_is_fast(built):
    assert min(float(said(start(LOAD, built))["seconds"]) for _ in range(3)) < 0.2


@pytest.mark.parametrize("damage", ["garbled", "cut short", "no checksum"])
def test_a_damaged_library_is_built_again(built, damage):
    library = libraries(built)[0] / "kernels.so"
    content = library.read_bytes()
    if damage == "garbled":
        library.write_bytes(content[:5000] + bytes([content[5000] ^ 255]) + content[5001:])
    elif damage == "cut short":
        library.write_bytes(content[:-1000])
    else:
        library.with_suffix(".sha256").unlink()
    assert said(start(LOAD, built))["reason"] == "None"
    assert library.stat().st_size == len(content)


def test_an_interrupted_build_leaves_nothing_in_the_way(tmp_path, compiled):
    process = start(LOAD, tmp_path)
    deadline = time.monotonic() + 60
    while (
        not list(tmp_path.glob("kernels/*.building-*/*.o")) and process.poll() is None and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert said(start(LOAD, tmp_path))["reason"] == "None"
    assert len(libraries(tmp_path)) == 1


def test_no_compiler(tmp_path):
    out = said(start(LOAD + COMPUTE, tmp_path, PATH="", CXX=""))["all"]
    assert "none is on the PATH" in out
    assert "computed" in out


@pytest.mark.parametrize(("compiler", "reason"), [("false", "ended with status 1"), ("/no/such/g++", "is not found")])
def test_a_compiler_that_does_not_compile(tmp_path, compiler, reason):
    out = said(start(LOAD + COMPUTE, tmp_path, CXX=compiler))["all"]
    assert reason in out
    assert "computed" in out


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("not a directory")
    out = said(start(LOAD + COMPUTE, tmp_path / "file"))["all"]
    assert "set MINISERVE_CACHE to another directory" in out
    assert "computed" in out


def test_there_is_one_openmp_runtime(built):
    """The library's threads are torch's: no second runtime was loaded beside it."""
    code = LOAD + RUNTIMES
    if not Path("/proc/self/maps").exists():
        pytest.skip("no /proc")
    assert said(start(code, built))["runtimes"] == "1"


def test_threads_follow_torch(compiled):
    """Any number of threads, also more than there are cores, gives the same bits."""
    from miniserve.kernels.cpu.linear import linear
    from miniserve.kernels.linear_weight import LinearWeight

    weight, x, before = LinearWeight(torch.randn(300, 64)), torch.randn(20, 64), torch.get_num_threads()
    results = []
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        results.append(linear(x, weight))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
