"""The library's functions for Python: `kernels.h` in ctypes' words. One call costs two to three microseconds."""

import ctypes
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from miniserve.kernels.cpu.build import library

_P, _N, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float

BF16_ACTIVATIONS = {torch.float32: 0, torch.bfloat16: 1}  # the first bit of `types` in kernels.h
BF16_OTHER = {torch.float32: 0, torch.bfloat16: 2}  # the second


class Functions(NamedTuple):
    """What kernels.h declares."""

    norm: Callable[..., None]
    linear: Callable[..., None]
    rope_store: Callable[..., int]
    paged_attention: Callable[..., int]
    silu_mul: Callable[..., None]
    argmax: Callable[..., None]
    dense_layers: Callable[..., int]
    route: Callable[..., None]
    moe: Callable[..., None]


@functools.cache
def functions() -> Functions | None:
    """The functions; None where there is no library, and `unavailable` says why."""
    found = library()
    if isinstance(found, str):
        return None

    def declare(name: str, result: Any, *arguments: Any) -> Any:
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, result
        return function

    return Functions(
        norm=declare("ms_norm", None, _I, _P, _P, _P, _P, _N, _N, _F, _I),
        linear=declare("ms_linear", None, _I, _P, _I, _P, _P, _P, _P, _N, _N, _N, _I),
        rope_store=declare("ms_rope_store", _I, _I, *[_P] * 5, _F, *[_P] * 4, *[_N] * 5, _I),
        paged_attention=declare("ms_paged_attention", _I, _I, *[_P] * 7, *[_N] * 8, _I),
        silu_mul=declare("ms_silu_mul", None, _I, _P, _P, _N, _N, _I),
        argmax=declare("ms_argmax", None, _P, _P, _N, _N, _I),
        dense_layers=declare("ms_dense_layers", _I, _P, _P, _I),
        route=declare("ms_route", None, _P, _P, _P, _N, _N, _N, _I, _I),
        moe=declare("ms_moe", None, *[_P] * 6, _N, _I),
    )


def unavailable() -> str | None:
    """Why the C++ kernels cannot be used on this machine; None if they can. The first call may compile them."""
    found = library()
    return found if isinstance(found, str) else None
