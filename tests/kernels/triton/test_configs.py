"""The tables are looked up right, and slices are as many as a GPU can use."""

import pytest

from miniserve.kernels.triton import configs
from miniserve.kernels.triton.configs import ADA, AMPERE, BLACKWELL, HOPPER, INTERPRETER, Capability, num_splits


@pytest.mark.parametrize(
    ("capability", "known"),
    [((0, 0), INTERPRETER), ((8, 0), AMPERE), ((8, 6), AMPERE), ((8, 9), ADA), ((9, 0), HOPPER), ((10, 0), BLACKWELL),
     ((10, 3), BLACKWELL), ((12, 0), ADA), ((12, 1), ADA)],
)  # fmt: skip
def test_a_gpu_has_the_newest_row_that_is_not_newer(capability, known):
    for table in (configs.PREFILL, configs.DECODE, configs.DECODE_EIGHT_BITS, configs.FEW_ROWS, configs.MANY_ROWS):
        assert configs.row(table, Capability(*capability)) is table[known]


def test_wide_rows_have_smaller_tiles():
    narrow, wide = (configs.prefill_config(HOPPER, row_bytes) for row_bytes in (256, 512))
    assert (wide.tile, wide.rows) < (narrow.tile, narrow.rows)
    assert configs.gemm_config(HOPPER, 8, 8, 4).depth < configs.gemm_config(HOPPER, 8, 8, 2).depth


def test_slices_fill_the_gpu_and_no_more():
    assert num_splits(1024, 8192, 64, 132) == 1  # there is enough to do without
    assert num_splits(8, 8192, 64, 132) == 64
    assert num_splits(8, 256, 64, 132) == 4  # a slice is a tile at least
    for programs in range(1, 600):
        splits = num_splits(programs, 10**6, 64, 132)
        assert splits == 1 or programs * splits <= configs.PROGRAMS_PER_SM * 132
        assert splits & (splits - 1) == 0
