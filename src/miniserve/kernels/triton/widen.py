"""`widened`: weights of 8 bits on their way into a product, each value as it is.

Triton's own way from E4M3 to bfloat16 ends with a conversion from float16, which Triton 3.6 asks of generation 8.9 too,
that has none. An E4M3 number has so few bits that none is lost by a cut: as a float32, its upper half is the bfloat16.
With wider tiles it took a decode step of eight users from 0.98 to 1.42 times bfloat16's speed (an 8B on an H100).
"""

# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def widened(codes, kind: tl.constexpr):
    """E4M3, INT8 or floats as `kind`: bfloat16 or float16, which have all the values of both; or the floats' own."""
    if codes.dtype == tl.float8e4nv and kind == tl.bfloat16:
        bits = codes.to(tl.float16).to(tl.float32).to(tl.uint32, bitcast=True)
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return codes.to(kind)
