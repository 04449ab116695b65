"""The kernels compile for every generation with its tensor-core instruction, without spills, in the shared memory it has.

No GPU is needed: Triton compiles for a target, and its own disassembler reads what came out. Types, tiles and shapes
are those of a Llama 3.1 8B in bfloat16, and of a Qwen3-30B-A3B's experts, as `configs` has them for that GPU.
"""

import re
import subprocess
from pathlib import Path

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from miniserve.kernels.triton import attention_kernels, few_rows, moe, moe_few_tokens, rowwise
from miniserve.kernels.triton.configs import Capability, decode_config, few_rows_config, gemm_config, prefill_config

SHARED_MEMORY = {80: 163, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB a block may have: CUDA C++ Programming Guide
TARGETS = [Capability(*divmod(number, 10)) for number in SHARED_MEMORY]
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
LLAMA = {"GROUP": 4, "SLOTS": 64, "D": 128, "DIM": 128, "SCALED": False}
NARROW = {"k_ptr", "v_ptr", "w_ptr"}  # in E4M3, where the cache is or the weights are
INT32 = {"start_ptr", "length_ptr", "table_ptr", "order_ptr", "begin_ptr"}
FLOAT32 = {"part_ptr", "m_ptr", "l_ptr", "k_scale_ptr", "v_scale_ptr", "scale_ptr", "weight_ptr", "cos_ptr", "sin_ptr"}


def compiled(kernel, target, constants, warps, stages, kv="bf16"):
    types = {"expert_ptr": "*i64", "slot_ptr": "*i64", "scale": "fp32", "eps": "fp32"}
    types |= dict.fromkeys(INT32, "*i32") | dict.fromkeys(FLOAT32, "*fp32") | dict.fromkeys(NARROW, f"*{kv}")
    if kernel is rowwise.norm_kernel:
        types["weight_ptr"] = "*bf16"
    signature = {}
    for name in kernel.arg_names:
        default = "*bf16" if name.endswith("_ptr") else "i32"
        signature[name] = "constexpr" if name in constants else types.get(name, default)
    aligned = {
        (at,): [["tt.divisibility", 16]]
        for at, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or name.startswith("stride")
    }
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, places, aligned)
    return triton.compile(
        source,
        target=GPUTarget("cuda", target.major * 10 + target.minor, 32),
        options={"num_warps": warps, "num_stages": stages},
    )


def check(kernel, target, tmp_path):
    """No local memory, which is where spilled registers go; shared memory within the limit."""
    assert kernel.metadata.shared <= SHARED_MEMORY[target.major * 10 + target.minor] * 1024
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    command = [str(TOOLS / "cuobjdump"), "--dump-resource-usage", str(cubin)]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert found, usage
    assert (found[2], found[3]) == ("0", "0"), usage


def check_asynchronous(kernel, tmp_path):
    """Hopper's products are left in flight; ptxas says where it has to wait for each one instead."""
    source = tmp_path / "kernel.ptx"
    source.write_text(kernel.asm["ptx"])
    command = [get_ptxas(90).path, "-v", "--gpu-name=sm_90a", str(source), "-o", str(tmp_path / "again.cubin")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "serialized" not in said, said


def tensor_core_instruction(target, rows):
    """Hopper's and Blackwell's own take at least 64 rows; below that, and elsewhere, Ampere's is used."""
    if rows < 64 or target.major in (8, 12):
        return "mma.sync"
    return "wgmma.mma_async" if target.major == 9 else "tcgen05.mma"


@pytest.mark.parametrize(
    ("target", "kv"),
    [*((target, "bf16") for target in TARGETS), (Capability(8, 0), "i8"), (Capability(9, 0), "fp8e4nv")],
    ids=str,
)
def test_prefill(target, kv, tmp_path):
    config = prefill_config(target, 256)
    constants = LLAMA | {"HEADS": 4, "BLOCK_Q": config.rows // 4, "TILE": config.tile, "LEAVE_ONES": True}
    constants |= {"SCALED": kv != "bf16"}
    kernel = compiled(attention_kernels.prefill_kernel, target, constants, config.warps, config.stages, kv)
    check(kernel, target, tmp_path)
    assert tensor_core_instruction(target, config.rows) in kernel.asm["ptx"]
    if target.major == 9:
        check_asynchronous(kernel, tmp_path)


@pytest.mark.parametrize(
    ("target", "kv"),
    [
        *((target, "bf16") for target in TARGETS),
        *((target, "fp8e4nv") for target in TARGETS if target >= (8, 9)),  # before, Triton has no E4M3
        *((target, "i8") for target in TARGETS if target <= (9, 0)),
    ],
    ids=str,
)
def test_decode(target, kv, tmp_path):
    config = decode_config(target, 256, eight_bits=kv != "bf16")
    constants = LLAMA | {"HEADS": 16, "ONE_SLICE": False, "TILE": config.tile, "SCALED": kv != "bf16"}
    kernel = compiled(attention_kernels.decode_kernel, target, constants, config.warps, config.stages, kv)
    check(kernel, target, tmp_path)
    assert "mma.sync" in kernel.asm["ptx"]


@pytest.mark.parametrize(
    ("rows", "form"),
    [*((rows, form) for rows in (1, 16) for form in ("bf16", "fp8e4nv", "i8")), (64, "i8"), (128, "i8")],
)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_few_rows(target, rows, form, tmp_path):
    if form == "fp8e4nv" and target < (8, 9):
        pytest.skip("Triton has no E4M3 before 8.9")
    config = few_rows_config(target, rows=rows, eight_bits=form != "bf16")
    constants = {"SCALED": form != "bf16", "BIASED": False, "K": 4096, "ROWS": rows}
    constants |= {"COLUMNS": config.columns, "DEPTH": config.depth}
    kernel = compiled(few_rows.few_rows_kernel, target, constants, config.warps, config.stages, form)
    check(kernel, target, tmp_path)
    assert rows == 1 or tensor_core_instruction(target, min(rows, config.columns)) in kernel.asm["ptx"]
    assert rows > 1 or "mma" not in kernel.asm["ptx"]


@pytest.mark.parametrize(("assignments", "gated"), [(8, True), (65536, True), (65536, False)])
@pytest.mark.parametrize(
    ("target", "form"),
    [*((target, "bf16") for target in TARGETS), (Capability(9, 0), "fp8e4nv"), (Capability(10, 0), "i8")],
    ids=str,
)
def test_experts(target, form, assignments, gated, tmp_path):
    config = gemm_config(target, assignments, 128, 2, eight_bits=form != "bf16")
    shape = (
        {"N": 768, "K": 2048, "COLUMNS": config.columns}
        if gated
        else {"N": 2048, "K": 768, "COLUMNS": config.plain_columns}
    )
    constants = {
        "DIVISOR": 8,
        "GATED": gated,
        "SCALED": form != "bf16",
        "E": 128,
        "EXPERTS": 128,
        "ROWS": config.rows,
        "DEPTH": config.depth,
    } | shape
    kernel = compiled(moe.product_kernel, target, constants, config.warps, config.stages, form)
    check(kernel, target, tmp_path)
    assert tensor_core_instruction(target, config.rows) in kernel.asm["ptx"]
    if target.major == 9 and config.rows >= 64 and form == "bf16":  # codes are widened between load and product
        check_asynchronous(kernel, tmp_path)


@pytest.mark.parametrize(
    ("kernel", "constants"),
    [
        (rowwise.norm_kernel, {"ADD": True, "ROWS": 1, "H": 4096, "SIZE": 4096}),
        (rowwise.silu_mul_kernel, {"SIZE": 14336, "BLOCK": 1024}),
        (
            rowwise.rope_store_kernel,
            {"SCALED": False, "N": 32, "G": 8, "SLOTS": 64, "D": 128, "HALF": 64, "HEADS": 8},
        ),
        (rowwise.round_rows_kernel, {"K": 14336, "BLOCK": 2048}),
        (rowwise.expand_rows_kernel, {"K": 14336, "BLOCK": 2048}),
        (moe.sort_kernel, {"SCAN": 1024}),
        (moe_few_tokens.gated_row_kernel, {"SCALED": True, "CHOICES": 8, "E": 128, "N": 768, "K": 2048, "DEPTH": 2048}),
        (moe_few_tokens.down_row_kernel, {"SCALED": True, "CHOICES": 8, "PADDED": 8, "E": 128, "K": 768, "DEPTH": 256}),
        (moe.sum_kernel, {"E": 128, "CHOICES": 8, "COLUMNS": 1024}),
        (attention_kernels.combine_kernel, {"PADDED": 16, "D": 128, "DIM": 128}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_others(kernel, constants, tmp_path):
    target = Capability(9, 0)
    check(compiled(kernel, target, constants, 4, 3), target, tmp_path)


@pytest.mark.parametrize("kv", ["fp8e4nv", "i8"])
def test_the_store_of_eight_bits(kv, tmp_path):
    target = Capability(9, 0)
    constants = {"SCALED": True, "N": 32, "G": 8, "SLOTS": 64, "D": 128, "HALF": 64, "HEADS": 8}
    check(compiled(rowwise.rope_store_kernel, target, constants, 4, 3, kv), target, tmp_path)
