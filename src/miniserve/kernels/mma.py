"""One tensor-core instruction, `mma.sync.aligned.m16n8k16` with bfloat16 or float16 operands, lane by lane.

D = A B + C for tiles A [16, 16], B [16, 8] and float32 C [16, 8]. No lane of the warp sees a tile: each of the 32 holds
eight elements of A, four of B and four of C in its own registers, and only the instruction reads across them. A
*fragment* here is that: [32 lanes, registers]. Products of such operands are exact in float32. How hardware orders and
rounds their sum is not documented; here it is taken in float64 and rounded once, so a GPU's last bits may differ.

This is for reading and for tests, not for speed. Source of the maps: NVIDIA, PTX ISA 8.7, "Matrix Fragments for
mma.m16n8k16 with floating point type".
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from miniserve.errors import InvalidRequestError

Operand = Literal["A", "B", "C"]
SHAPES: dict[Operand, tuple[int, int]] = {"A": (16, 16), "B": (16, 8), "C": (16, 8)}
M, N, K = 16, 8, 16
LANES = 32
FLOPS = 2 * M * N * K  # of one instruction


class Places(NamedTuple):
    """Which element each register of each lane holds: rows and columns, [32, registers] int64 each."""

    rows: Tensor
    columns: Tensor


def fragment_map(operand: Operand) -> Places:
    """Where a lane's registers come from in the tile.

    Lanes form eight groups of four. A group has a row of A and of C, and the one eight below; of B it has a column. In
    it, each lane has two neighbouring elements along the other axis, and two more eight further on.
    """
    lanes = torch.arange(LANES)[:, None]
    group, member = lanes // 4, lanes % 4
    register = torch.arange(M * K // LANES if operand == "A" else M * N // LANES)[None, :]
    pair = 2 * member + register % 2
    if operand == "A":
        return Places(group + 8 * (register // 2 % 2), pair + 8 * (register // 4))
    if operand == "B":
        return Places(pair + 8 * (register // 2), group.expand(-1, register.shape[1]))
    return Places(group + 8 * (register // 2), pair)


def load_fragments(tile: Tensor, operand: Operand) -> Tensor:
    """Hand a tile's elements out to the lanes: A [16, 16], B [16, 8] or C [16, 8] -> [32, registers]."""
    if tile.shape != SHAPES[operand]:
        raise InvalidRequestError(f"{operand} is {list(tile.shape)}; the instruction takes {list(SHAPES[operand])}")
    return tile[fragment_map(operand)]


def holders(operand: Operand) -> Tensor:
    """The map the other way round: [rows, columns, 2] int64, the lane and the register that hold each element."""
    places = fragment_map(operand)
    lanes, registers = torch.meshgrid(*(torch.arange(n) for n in places.rows.shape), indexing="ij")
    table = torch.empty(*SHAPES[operand], 2, dtype=torch.int64)
    table[places] = torch.stack((lanes, registers), -1)
    return table


def mma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The instruction: each lane's four results, from registers that lie all over the warp.

    Args:
        a: [32, 8] bfloat16 or float16.
        b: [32, 4] of a's type.
        c: [32, 4] float32.

    Returns:
        [32, 4] float32, in the places of C.
    """
    if a.dtype not in (torch.bfloat16, torch.float16) or b.dtype is not a.dtype or c.dtype is not torch.float32:
        raise InvalidRequestError(
            f"mma: A and B are {a.dtype} and {b.dtype}, C is {c.dtype}; both bfloat16 or both float16, and float32"
        )
    results, of_a, of_b = fragment_map("C"), holders("A"), holders("B")
    d = torch.empty_like(c)
    for lane in range(LANES):
        for register in range(c.shape[1]):
            row, column = results.rows[lane, register], results.columns[lane, register]
            left = a[of_a[row].unbind(-1)]  # sixteen elements, held by the four lanes of a group
            right = b[of_b[:, column].unbind(-1)]
            d[lane, register] = (left.double() * right.double()).sum() + c[lane, register]
    return d


def store(d: Tensor) -> Tensor:
    """Put the lanes' results back into a tile: [32, 4] -> [16, 8]."""
    tile = torch.empty(SHAPES["C"], dtype=d.dtype)
    tile[fragment_map("C")] = d
    return tile


def warp_gemm(a: Tensor, b: Tensor) -> tuple[Tensor, int]:
    """A whole product as one warp would do it, tile after tile.

    Args:
        a: [16 i, 16 k] bfloat16 or float16.
        b: [16 k, 8 j].

    Returns:
        [16 i, 8 j] float32, and the number of instructions.
    """
    (rows, inner), columns = a.shape, b.shape[1]
    if b.shape[0] != inner or rows % M or inner % K or columns % N:
        raise InvalidRequestError(
            f"warp_gemm: {list(a.shape)} and {list(b.shape)}; multiples of [{M}, {K}] and [{K}, {N}] are needed"
        )
    out, count = torch.empty(rows, columns), 0
    for i in range(0, rows, M):
        for j in range(0, columns, N):
            accumulator = torch.zeros(LANES, M * N // LANES)
            for k in range(0, inner, K):
                left = load_fragments(a[i : i + M, k : k + K], "A")
                right = load_fragments(b[k : k + K, j : j + N], "B")
                accumulator = mma(left, right, accumulator)
                count += 1
            out[i : i + M, j : j + N] = store(accumulator)
    return out, count
