"""Triton's interpreter made exact in bfloat16 and E4M3. Importing this changes it, for the process.

The interpreter keeps such numbers as raw bits: its casts truncate or lose a carry, and its arithmetic and products take the bits for
integers, without a word. Here every operation on them computes in float32 and rounds once, as a GPU does. And a
comparison of two scalars, spread over a block, becomes a mask that no load takes; here it stays one. Works with Triton
3.9; 3.6's interpreter fails with numpy 2.4 on its own account.
"""

import ml_dtypes
import numpy as np
import triton.language as tl
from triton.runtime import interpreter

NARROW = {tl.bfloat16: ml_dtypes.bfloat16, tl.float8e4nv: ml_dtypes.float8_e4m3fn, tl.float8e5: ml_dtypes.float8_e5m2}
E4M3_MAX = 448.0
Builder, Handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
numpy_type = interpreter._get_np_dtype


def values(handle):
    """What a handle's bits stand for."""
    kind = handle.dtype.scalar
    return handle.data.view(NARROW[kind]).astype(np.float32) if kind in NARROW else handle.data


def bits(x, kind):
    """The handle's bits for values x."""
    if kind not in NARROW:
        return x.astype(numpy_type(kind))
    if kind == tl.float8e4nv:  # a GPU's cast saturates; ml_dtypes' gives NaN
        x = np.where(np.isnan(x), x, np.clip(x, -E4M3_MAX, E4M3_MAX))
    return x.astype(NARROW[kind]).view(numpy_type(kind))


def cast(self, source, to, rounding=None):
    return Handle(bits(values(source), to.scalar), to.scalar)


def computed_wide(narrow_operation):
    def operation(self, *arguments):
        *handles, function = arguments
        kind = handles[0].dtype.scalar
        if kind not in NARROW:
            return narrow_operation(self, *handles, function)
        result = function(*map(values, handles))
        return Handle(result if result.dtype == bool else bits(result, kind), kind)

    return operation


def dot(self, a, b, d, input_precision, max_num_imprecise_acc):
    return Handle(np.matmul(values(a), values(b), dtype=d.data.dtype) + d.data, d.dtype.scalar)


def splat(self, to, scalar):
    return Handle(np.full(to.shape, scalar.data, scalar.data.dtype), scalar.dtype.scalar)


Builder.create_splat = splat
Builder.cast_impl = Builder.create_fp_to_fp = cast
Builder.create_dot = dot
Builder.binary_op, Builder.unary_op = computed_wide(Builder.binary_op), computed_wide(Builder.unary_op)
