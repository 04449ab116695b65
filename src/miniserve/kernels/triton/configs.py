"""In what tiles the kernels compute on which generation of GPU: tables, and no search at run time.

A table's row is looked up by compute capability: a GPU has the newest row that is not newer than itself, but for 12.x
(consumer Blackwell), which has the tensor-core instructions and the shared memory of 8.9. Shared memory per block is
163 KiB on 8.0, 99 KiB on 8.9 and 12.x, 227 KiB on 9.0 and 10.x; a tile's bytes times `stages` must fit.
Tensors on a CPU, which only Triton's interpreter takes, have the smallest row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple, TypeVar

import torch

T = TypeVar("T")


class Capability(NamedTuple):
    """A GPU's generation, such as 9.0."""

    major: int
    minor: int


@dataclass(frozen=True)
class AttentionConfig:
    """Tiles of an attention kernel.

    Attributes:
        rows: query tokens times heads of a group in a tile; prefill alone.
        tile: cache positions in a tile.
        warps: of a program.
        stages: tiles in flight.
    """

    rows: int
    tile: int
    warps: int
    stages: int


@dataclass(frozen=True)
class GemmConfig:
    """Tiles of a grouped product: rows of tokens, columns of outputs, depth, warps, tiles in flight."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    @property
    def plain_columns(self) -> int:
        """Columns where there is no gate, and so one accumulator instead of two, if they are what limits a tile."""
        return self.columns * 2 if self.rows >= MOST_BOUND_BY_WEIGHTS else self.columns


@dataclass(frozen=True)
class FewRowsConfig:
    """Tiles of a product with few rows: outputs and depth of a tile of W, warps, tiles in flight."""

    columns: int
    depth: int
    warps: int
    stages: int


INTERPRETER, AMPERE, ADA, HOPPER, BLACKWELL = (
    Capability(0, 0),
    Capability(8, 0),
    Capability(8, 9),
    Capability(9, 0),
    Capability(10, 0),
)

PREFILL: Mapping[Capability, AttentionConfig] = {
    INTERPRETER: AttentionConfig(rows=16, tile=16, warps=4, stages=2),
    AMPERE: AttentionConfig(rows=64, tile=32, warps=4, stages=3),
    ADA: AttentionConfig(rows=64, tile=32, warps=4, stages=3),
    HOPPER: AttentionConfig(rows=64, tile=64, warps=4, stages=3),
    BLACKWELL: AttentionConfig(rows=128, tile=64, warps=8, stages=3),
}
DECODE: dict[Capability, AttentionConfig] = {
    INTERPRETER: AttentionConfig(rows=16, tile=16, warps=4, stages=2),
    AMPERE: AttentionConfig(rows=16, tile=64, warps=4, stages=3),
    ADA: AttentionConfig(rows=16, tile=32, warps=4, stages=3),
    HOPPER: AttentionConfig(rows=16, tile=32, warps=1, stages=3),
    BLACKWELL: AttentionConfig(rows=16, tile=64, warps=4, stages=3),
}
DECODE_EIGHT_BITS: Mapping[Capability, AttentionConfig] = DECODE | {
    HOPPER: AttentionConfig(rows=16, tile=64, warps=2, stages=3),
}
# Few rows an expert, as in decode: the weights' bytes are what counts. Many: the tensor cores.
FEW_ROWS: Mapping[Capability, GemmConfig] = {
    INTERPRETER: GemmConfig(rows=16, columns=16, depth=16, warps=4, stages=2),
    AMPERE: GemmConfig(rows=16, columns=64, depth=128, warps=4, stages=3),
    ADA: GemmConfig(rows=16, columns=64, depth=64, warps=4, stages=3),
    HOPPER: GemmConfig(rows=16, columns=64, depth=128, warps=4, stages=4),
    BLACKWELL: GemmConfig(rows=16, columns=64, depth=128, warps=4, stages=4),
}
MANY_ROWS: dict[Capability, GemmConfig] = {
    INTERPRETER: GemmConfig(rows=32, columns=16, depth=16, warps=4, stages=2),
    AMPERE: GemmConfig(rows=64, columns=64, depth=64, warps=4, stages=3),
    ADA: GemmConfig(rows=64, columns=64, depth=32, warps=4, stages=3),
    HOPPER: GemmConfig(rows=128, columns=128, depth=64, warps=8, stages=3),
    BLACKWELL: GemmConfig(rows=128, columns=128, depth=64, warps=8, stages=3),
}
MANY_ROWS_EIGHT_BITS: Mapping[Capability, GemmConfig] = MANY_ROWS | {  # experts of 8 bits; no search has been made
    BLACKWELL: GemmConfig(rows=128, columns=64, depth=64, warps=8, stages=3),  # wider ones spill
}
# One row of x, and a few; W of 16 bits, and of 8. Found by search on an H100, and only there.
SINGLE_ROW: Mapping[Capability, FewRowsConfig] = {
    INTERPRETER: FewRowsConfig(columns=4, depth=64, warps=4, stages=2),
    AMPERE: FewRowsConfig(columns=1, depth=2048, warps=4, stages=3),
}
SINGLE_ROW_EIGHT_BITS: Mapping[Capability, FewRowsConfig] = {
    INTERPRETER: FewRowsConfig(columns=4, depth=64, warps=4, stages=2),
    AMPERE: FewRowsConfig(columns=2, depth=2048, warps=4, stages=2),
}
SEVERAL_ROWS: dict[Capability, FewRowsConfig] = {
    INTERPRETER: FewRowsConfig(columns=16, depth=32, warps=4, stages=2),
    AMPERE: FewRowsConfig(columns=32, depth=128, warps=4, stages=4),
    ADA: FewRowsConfig(columns=32, depth=128, warps=4, stages=3),
    HOPPER: FewRowsConfig(columns=32, depth=128, warps=4, stages=5),
}
SEVERAL_ROWS_EIGHT_BITS: Mapping[Capability, FewRowsConfig] = SEVERAL_ROWS | {
    HOPPER: FewRowsConfig(columns=32, depth=256, warps=4, stages=4),
}
DOZENS_OF_ROWS: Mapping[Capability, FewRowsConfig] = {  # W of 8 bits alone; found by search on an H100
    INTERPRETER: FewRowsConfig(columns=16, depth=32, warps=4, stages=2),
    AMPERE: FewRowsConfig(columns=64, depth=64, warps=8, stages=3),  # with four warps it spills
    HOPPER: FewRowsConfig(columns=64, depth=128, warps=4, stages=3),
}
MOST_BOUND_BY_WEIGHTS = 64  # rows of a tile from which on the tensor cores count
PROGRAMS_PER_SM = 4  # decode programs that a multiprocessor should have to hide the memory's latency
MOST_SPLITS = 64
HALF_TILE_ABOVE = 256  # bytes of a head's row: float32, or heads beyond 128, take half the tile


@cache
def capability(device: torch.device) -> Capability:
    """The generation of the GPU `device`; `INTERPRETER` for the CPU."""
    return Capability(*torch.cuda.get_device_capability(device)) if device.type == "cuda" else INTERPRETER


@cache
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of the GPU `device`; 1 for the CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def row(table: Mapping[Capability, T], of: Capability) -> T:
    """The row of a table that a GPU of that capability has."""
    if of.major == 12:
        of = ADA
    return table[max(known for known in table if known <= of)]


def prefill_config(of: Capability, row_bytes: int) -> AttentionConfig:
    """For a head's row of that many bytes, padded to a power of 2, in the wider of queries and cache."""
    return _fitting(row(PREFILL, of), row_bytes)


def decode_config(of: Capability, row_bytes: int, *, eight_bits: bool = False) -> AttentionConfig:
    """As `prefill_config`; eight_bits: for a cache of these."""
    return _fitting(row(DECODE_EIGHT_BITS if eight_bits else DECODE, of), row_bytes)


def _fitting(config: AttentionConfig, row_bytes: int) -> AttentionConfig:
    if row_bytes <= HALF_TILE_ABOVE:
        return config
    return replace(config, rows=max(16, config.rows // 4), tile=max(16, config.tile // 2), stages=2)


def num_splits(programs: int, longest: int, tile: int, sms: int) -> int:
    """In how many slices to cut each sequence's cache, so that all multiprocessors have work: a power of 2.

    Args:
        programs: sequences times key/value heads.
        longest: positions that a block table can hold; the host knows no sequence's own length.
        tile: positions of a tile.
        sms: multiprocessors.
    """
    splits = 1
    while splits < MOST_SPLITS and programs * splits * 2 <= PROGRAMS_PER_SM * sms and splits * 2 * tile <= longest:
        splits *= 2
    return splits


def gemm_config(
    of: Capability, assignments: int, experts: int, element_size: int, *, eight_bits: bool = False
) -> GemmConfig:
    """For that many assignments of tokens to experts, spread evenly, and elements of x of that many bytes.

    eight_bits: for experts of these.
    """
    few, many = row(FEW_ROWS, of), row(MANY_ROWS_EIGHT_BITS if eight_bits else MANY_ROWS, of)
    if element_size > 2:
        return replace(few, depth=max(16, few.depth // 4), stages=2)  # no tensor cores: many rows gain nothing
    return many if assignments >= experts * many.rows // 2 else few


def few_rows_config(of: Capability, *, rows: int, eight_bits: bool) -> FewRowsConfig:
    """For a tile of that many rows of x (`few_rows.TILES`), and W of 16 bits or 8."""
    if rows == 1:
        return row(SINGLE_ROW_EIGHT_BITS if eight_bits else SINGLE_ROW, of)
    if rows > 16:
        return row(DOZENS_OF_ROWS, of)
    return row(SEVERAL_ROWS_EIGHT_BITS if eight_bits else SEVERAL_ROWS, of)
