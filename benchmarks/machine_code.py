"""What each generation's compiler makes of one small matrix product: which instruction multiplies, and how often.

    python benchmarks/machine_code.py --out results/machine_code.json

Triton compiles the same kernel for each architecture, and NVIDIA's assembler and disassembler, which come with it, make
the machine code and read it back. No GPU is needed, and nothing is run: this says what a processor would be told to do,
not how fast it is. Triton itself uses tensor cores from sm_80 on; to see what sm_75 has, one `mma` is assembled for
each architecture besides.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import triton
import triton.language as tl
import typer
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.errors import CompilationError

from miniserve.bench.record import record

ARCHITECTURES = (75, 80, 89, 90, 100, 120)
OPERANDS = {"float16": "fp16", "E4M3": "fp8e4nv"}
TILE = {"ROWS": 128, "COLUMNS": 64, "DEPTH": 64}
WARPS = 4
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# A product of one tile of each operand, in registers; sm_75 has the shorter of the two instructions only.
ONE_MMA = """
.version {version}
.target sm_{architecture}
.address_size 64
.visible .entry one_mma(.param .u64 pointer) {{
  .reg .u64 %p;
  .reg .b32 %a<4>, %b<2>;
  .reg .f32 %d<4>;
  ld.param.u64 %p, [pointer];
  ld.global.v4.b32 {{%a0, %a1, %a2, %a3}}, [%p];
  ld.global.v2.b32 {{%b0, %b1}}, [%p + 16];
  ld.global.v4.f32 {{%d0, %d1, %d2, %d3}}, [%p + 32];
  {instruction} {{%d0, %d1, %d2, %d3}}, {operands}, {{%d0, %d1, %d2, %d3}};
  st.global.v4.f32 [%p + 32], {{%d0, %d1, %d2, %d3}};
  ret;
}}
"""


@triton.jit
def product(a_ptr, b_ptr, c_ptr, K, N, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):  # noqa: ANN001, ANN201, N803
    """One tile of C = A Bᵀ in float32; A [·, K] and B [N, K]."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, K, DEPTH):
        inner = start + tl.arange(0, DEPTH)
        a = tl.load(a_ptr + rows[:, None] * K + inner[None, :])
        b = tl.load(b_ptr + columns[None, :] * K + inner[:, None])
        total += tl.dot(a, b)
    tl.store(c_ptr + rows[:, None] * N + columns[None, :], total)


def compiled(architecture: int, operands: str) -> dict[str, Any]:
    """The kernel for one architecture: what multiplies in it, or why it does not compile."""
    pointer = f"*{OPERANDS[operands]}"
    signature = {"a_ptr": pointer, "b_ptr": pointer, "c_ptr": "*fp32", "K": "i32", "N": "i32"}
    signature |= dict.fromkeys(TILE, "constexpr")
    names = list(signature)
    aligned = {(at,): [["tt.divisibility", 16]] for at in range(len(names) - len(TILE))}
    source = ASTSource(product, signature, {(names.index(name),): size for name, size in TILE.items()}, aligned)
    about: dict[str, Any] = {"architecture": f"sm_{architecture}", "operands": operands}
    try:
        options = {"num_warps": WARPS, "num_stages": 2, "enable_fp_fusion": True}
        kernel = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    except CompilationError as error:
        return about | {"refused": str(error).strip().splitlines()[-1]}
    ptx = kernel.asm["ptx"]
    multiplying = Counter(
        re.findall(r"wgmma\.mma_async\.[\w.:]+|tcgen05\.mma\.[\w.:]+|mma\.sync\.[\w.:]+|fma\.rn\.f32", ptx)
    )
    ((virtual, _),) = multiplying.items()
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        code = instructions(cubin)
        usage = tool("cuobjdump", "--dump-resource-usage", cubin)
    registers, stack = (int(re.findall(rf"{name}:(\d+)", usage)[-1]) for name in ("REG", "STACK"))
    real = {name: count for name, count in Counter(code).items() if "MMA" in name or name == "FFMA"}
    ((name, count),) = real.items()
    threads, m, n, k = shape(virtual, ptx)
    return about | {
        "ptx": virtual,
        "instruction": name,
        "count": count,
        "instructions": len(code),
        "issued_by_threads": threads,
        "shape": [m, n, k],
        "flops_per_instruction": 2 * m * n * k,
        "registers_per_thread": registers,
        "spilled_bytes_per_thread": stack,
        "shared_bytes": kernel.metadata.shared,
    }


def shape(virtual: str, ptx: str) -> tuple[int, int, int, int]:
    """How many threads issue one such instruction together, and the M, N and K of its product."""
    if virtual.startswith("fma"):
        return 1, 1, 1, 1
    if found := re.search(r"\.m(\d+)n(\d+)k(\d+)\.", virtual):
        m, n, k = map(int, found.groups())
        return (128 if virtual.startswith("wgmma") else 32), m, n, k
    # tcgen05: M and N are in the instruction descriptor, a register with a constant; K is 32 bytes of an operand.
    register = re.search(re.escape(virtual) + r" \[[^]]+\], %rd\d+, %rd\d+, (%r\d+)", ptx)
    constant = register and re.search(rf"mov\.b32\s+{register[1]}, (\d+);", ptx)
    if not constant:
        raise RuntimeError(f"the descriptor of {virtual} was not found")
    descriptor = int(constant[1])
    k = {"kind::f16": 16, "kind::f8f6f4": 32}[virtual.rpartition(".")[2]]
    return 1, (descriptor >> 24 & 31) * 16, (descriptor >> 17 & 63) * 8, k


def assembled(architecture: int) -> dict[str, str]:
    """One `mma` in PTX, of the largest tile that the architecture takes, and the instruction it becomes."""
    short = architecture < 80
    tile, operands = ("m16n8k8", "{%a0, %a1}, {%b0}") if short else ("m16n8k16", "{%a0, %a1, %a2, %a3}, {%b0, %b1}")
    instruction = f"mma.sync.aligned.{tile}.row.col.f32.f16.f16.f32"
    blackwell = architecture >= 100
    text = ONE_MMA.format(
        version="8.7" if blackwell else "8.0", architecture=architecture, instruction=instruction, operands=operands
    )
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder) / "one.ptx", Path(folder) / "one.cubin"
        ptx.write_text(text, encoding="ascii")
        tool("ptxas-blackwell" if blackwell else "ptxas", f"-arch=sm_{architecture}", ptx, "-o", cubin)
        (name,) = (each for each in instructions(cubin) if "MMA" in each)
    return {"architecture": f"sm_{architecture}", "ptx": instruction, "instruction": name}


def instructions(cubin: Path) -> list[str]:
    """The machine instructions' names, in order, without their predicates and operands; padding is left out."""
    lines = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", tool("nvdisasm", "-c", cubin), re.M)
    return [name for name in lines if name != "NOP"]


def tool(name: str, *arguments: str | Path) -> str:
    """What one of Triton's bundled NVIDIA tools prints."""
    done = subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.strip()}")
    return done.stdout


def main(
    out: Annotated[Path | None, typer.Option(help="Write the result with its provenance to this file.")] = None,
) -> None:
    """Compile, disassemble, count."""
    rows = [compiled(architecture, operands) for operands in OPERANDS for architecture in ARCHITECTURES]
    data = {
        "kernel": {"tile": [TILE["ROWS"], TILE["COLUMNS"], TILE["DEPTH"]], "warps": WARPS},
        "assembler": tool("ptxas", "--version").strip().splitlines()[-1],
        "compiled": rows,
        "assembled": [assembled(architecture) for architecture in ARCHITECTURES],
    }
    columns = ("architecture", "operands", "instruction", "count", "flops_per_instruction", "registers_per_thread")
    table = Table(*columns)
    for row in rows:
        table.add_row(*(str(row.get(column, "-")) for column in columns))
    Console(file=sys.stderr).print(table)
    if out:
        result = record(data, "python benchmarks/machine_code.py --out results/machine_code.json")
        result["device"] = "no device: compiled, not run"
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
