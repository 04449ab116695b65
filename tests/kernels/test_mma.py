"""One tensor-core instruction: its fragment maps against Triton's own layouts and a table, its results against float64."""

import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.errors import InvalidRequestError
from miniserve.kernels import mma

# The element (row, column) of each register of three lanes, by hand from the rules of the PTX ISA 8.7, section
# "Matrix Fragments for mma.m16n8k16 with floating point type".
RECORDED = {
    ("A", 0): [(0, 0), (0, 1), (8, 0), (8, 1), (0, 8), (0, 9), (8, 8), (8, 9)],
    ("A", 5): [(1, 2), (1, 3), (9, 2), (9, 3), (1, 10), (1, 11), (9, 10), (9, 11)],
    ("A", 31): [(7, 6), (7, 7), (15, 6), (15, 7), (7, 14), (7, 15), (15, 14), (15, 15)],
    ("B", 0): [(0, 0), (1, 0), (8, 0), (9, 0)],
    ("B", 5): [(2, 1), (3, 1), (10, 1), (11, 1)],
    ("B", 31): [(6, 7), (7, 7), (14, 7), (15, 7)],
    ("C", 0): [(0, 0), (0, 1), (8, 0), (8, 1)],
    ("C", 5): [(1, 2), (1, 3), (9, 2), (9, 3)],
    ("C", 31): [(7, 6), (7, 7), (15, 6), (15, 7)],
}
# Triton prints its layouts while it compiles, for a GPU that need not be there. A process of its own: elsewhere in the
# tests Triton may have been set up to interpret.
PRINT_LAYOUTS = """
import sys, types
from triton.backends.compiler import GPUTarget
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

@gluon.jit
def layouts():
    acc: gl.constexpr = gl.NVMMADistributedLayout(version=[2, 0], warps_per_cta=[1, 1], instr_shape=[16, 8])
    gl.static_print("C", gl.to_linear_layout(acc, [16, 8]))
    gl.static_print("A", gl.to_linear_layout(gl.DotOperandLayout(operand_index=0, parent=acc, k_width=2), [16, 16]))
    gl.static_print("B", gl.to_linear_layout(gl.DotOperandLayout(operand_index=1, parent=acc, k_width=2), [16, 8]))

triton.compile(GluonASTSource(layouts, {}, {}, {}), target=GPUTarget("cuda", 80, 32), options={"num_warps": 1})
"""


def draw(*shape, dtype=torch.bfloat16, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(("operand", "lane"), RECORDED)
def test_the_map_is_the_recorded_one(operand, lane):
    rows, columns = mma.fragment_map(operand)
    assert list(zip(rows[lane].tolist(), columns[lane].tolist(), strict=True)) == RECORDED[operand, lane]


def spread(bases, count):
    """A linear layout: the place of number n is the xor of the bases of n's bits. -> [count, 2]"""
    places = torch.zeros(count, 2, dtype=torch.int64)
    for bit, base in enumerate(bases):
        places ^= (torch.arange(count)[:, None] >> bit & 1) * torch.tensor(base)
    return places


def test_the_map_is_tritons(tmp_path):
    pytest.importorskip("triton", reason="triton is not installed; the recorded table above remains")
    script = tmp_path / "layouts.py"  # it reads its own source
    script.write_text(PRINT_LAYOUTS, encoding="utf-8")
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, timeout=120, check=False)
    printed = dict(re.findall(r"^([ABC]) (.*)$", done.stdout, re.MULTILINE))
    assert set(printed) == {"A", "B", "C"}, done.stdout + done.stderr
    for operand, text in printed.items():
        bases = {
            name: [tuple(map(int, pair)) for pair in re.findall(r"\[(\d+), (\d+)\]", inner)]
            for name, inner in re.findall(r"(reg|lane)\w*=\[((?:\[[\d, ]+\](?:, )?)*)\]", text)
        }
        ours = torch.stack(mma.fragment_map(operand), -1)
        registers, lanes = spread(bases["reg"], ours.shape[1]), spread(bases["lane"], 32)
        assert torch.equal(ours, lanes[:, None] ^ registers[None]), text


@pytest.mark.parametrize("operand", mma.SHAPES)
def test_every_element_is_held_once(operand):
    rows, columns = mma.fragment_map(operand)
    height, width = mma.SHAPES[operand]
    assert sorted((rows * width + columns).flatten().tolist()) == list(range(height * width))
    lanes, registers = mma.holders(operand).unbind(-1)
    tile = torch.arange(height * width).view(height, width)
    assert torch.equal(mma.load_fragments(tile, operand)[lanes, registers], tile)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_instruction_is_the_product_rounded_once(dtype):
    a, b = draw(16, 16, dtype=dtype), draw(16, 8, dtype=dtype, seed=1)
    c = draw(16, 8, dtype=torch.float32, seed=2)
    got = mma.store(mma.mma(*(mma.load_fragments(t, name) for t, name in ((a, "A"), (b, "B"), (c, "C")))))
    exact = a.double() @ b.double() + c.double()
    assert got.dtype == torch.float32
    assert ((got.double() - exact).abs() <= exact.abs() * 2**-23 + 1e-12).all()


@settings(derandomize=True, deadline=None, max_examples=5)
@given(i=st.integers(1, 2), j=st.integers(1, 2), k=st.integers(1, 3), seed=st.integers(0, 99))
def test_a_product_of_tiles(i, j, k, seed):
    a, b = draw(16 * i, 16 * k, seed=seed), draw(16 * k, 8 * j, seed=seed + 1)
    got, count = mma.warp_gemm(a, b)
    assert count == i * j * k
    assert (got - a.double() @ b.double()).abs().max() < 1e-5
    assert count * mma.FLOPS == 2 * 16 * i * 8 * j * 16 * k


def test_sums_are_not_kept_in_sixteen_bits():
    a, b = torch.ones(16, 64, dtype=torch.bfloat16), torch.full((64, 8), 2.0**-9, dtype=torch.bfloat16)
    b[0] = 1.0
    got, _ = mma.warp_gemm(a, b)
    assert torch.equal(got, torch.full((16, 8), 1 + 63 * 2.0**-9))


def test_bad_shapes_and_types_are_named():
    with pytest.raises(InvalidRequestError, match=r"A is \[16, 8\]; the instruction takes \[16, 16\]"):
        mma.load_fragments(draw(16, 8), "A")
    with pytest.raises(InvalidRequestError, match=r"torch.float32 and torch.bfloat16"):
        mma.mma(draw(32, 8, dtype=torch.float32), draw(32, 4), torch.zeros(32, 4))
    with pytest.raises(InvalidRequestError, match=r"C is torch\.bfloat16"):
        mma.mma(draw(32, 8), draw(32, 4), draw(32, 4))
    for shapes in ([(16, 16), (32, 8)], [(8, 16), (16, 8)], [(16, 16), (16, 4)]):
        with pytest.raises(InvalidRequestError, match="multiples of"):
            mma.warp_gemm(*(draw(*shape) for shape in shapes))


def test_on_a_gpu_the_same_numbers():
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs an NVIDIA GPU with bfloat16 (compute capability 8.0)")
    a, b = draw(32, 64), draw(64, 16, seed=1)
    real = (a.cuda() @ b.cuda()).float().cpu()
    assert (mma.warp_gemm(a, b)[0].bfloat16().float() - real).abs().max() <= real.abs().max() * 2**-8
