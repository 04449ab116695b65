"""`GGUFFile`: a GGUF file's metadata, and its tensors as arrays. How its header is read: see `gguf_header`.

Block formats (Q4_1, Q8_0 ...) are decoded by the `gguf` package's `dequantize`; the simplest can be had undecoded.
Torch-free.
"""

import mmap
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from miniserve.errors import CorruptFileError, TensorError, UnsupportedModelError
from miniserve.model.gguf_header import GGUFTensor, HeaderReader

_Q4_0, _Q4_1, _Q8_0 = 2, 3, 8
BLOCK_BITS: dict[int, Literal[4, 8]] = {_Q4_0: 4, _Q4_1: 4, _Q8_0: 8}  # of the types that `GGUFFile.blocks` takes apart
_BLOCKS = {  # 32 elements each
    _Q4_0: np.dtype([("scale", "<f2"), ("q", "u1", 16)]),
    _Q4_1: np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("q", "u1", 16)]),
    _Q8_0: np.dtype([("scale", "<f2"), ("q", "i1", 32)]),
}


class Blocks(NamedTuple):
    """A matrix [N, K] in blocks of 32 elements: w = q · scale + minimum.

    Attributes:
        q: [N, K] int8, or, with 4 bits, uint8 from 0 to 15.
        scale: [N, K/32] float16.
        minimum: with 4 bits, [N, K/32] float16.
    """

    q: np.ndarray
    scale: np.ndarray
    minimum: np.ndarray | None


class GGUFFile:
    """An open GGUF file.

    Attributes:
        path: the file.
        metadata: key -> int, float, bool, str or a list of one of these.
        tensors: name -> `GGUFTensor`.

    Raises:
        CorruptFileError: the file cannot be read, is truncated or contradicts itself.
        UnsupportedModelError: a version or a tensor type that is not implemented.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: mmap of an empty file
            raise CorruptFileError(f"{path}: cannot be read ({error})") from error
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, GGUFTensor] = {}
        HeaderReader(self._bytes, path).read_into(self.metadata, self.tensors)

    def load(self, name: str, row: int | None = None) -> np.ndarray:
        """The tensor's values as float32, or only its slice `[row]` along the first dimension.

        Raises:
            TensorError: there is no such tensor.
            UnsupportedModelError: its block format cannot be decoded.
        """
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        raw, shape = self._raw(name), self.tensors[name].shape
        kind = GGMLQuantizationType(self.tensors[name].type_id)
        if row is not None:
            raw, shape = raw[row], shape[1:]
        try:
            # The plain floats are reinterpreted, not decoded; dequantize expects them typed already.
            values = raw.view(_PLAIN[kind.name]) if kind.name in _PLAIN else dequantize(raw, kind)
        except NotImplementedError as error:
            raise UnsupportedModelError(f"{self.path}: tensor {name} is stored as {kind.name}: {error}") from error
        return np.asarray(values, np.float32).reshape(shape)

    def blocks(self, name: str, row: int | None = None) -> Blocks:
        """The blocks of a matrix of a type in `BLOCK_BITS`, their bits as the file has them; or of one of several.

        Raises:
            TensorError: there is no such tensor.
        """
        raw = self._raw(name) if row is None else self._raw(name)[row]
        rows, type_id = len(raw), self.tensors[name].type_id
        records = raw.view(_BLOCKS[type_id])
        scale = records["scale"]
        if type_id == _Q8_0:
            return Blocks(records["q"].reshape(rows, -1), scale, None)
        # A byte holds element i of its block in its lower, and i + 16 in its upper half.
        q = np.concatenate((records["q"] & 15, records["q"] >> 4), axis=-1).reshape(rows, -1)
        with np.errstate(over="ignore"):  # to infinity, which whoever takes the blocks will not accept
            return Blocks(q, scale, records["minimum"] if type_id == _Q4_1 else scale * np.float16(-8))

    def _raw(self, name: str) -> np.ndarray:
        """A tensor's bytes, [..., bytes of a row]."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise TensorError(f"{self.path}: tensor {name} is missing")
        raw = np.frombuffer(self._bytes, np.uint8, tensor.num_bytes, tensor.offset)
        return raw.reshape(*tensor.shape[:-1], -1)


_PLAIN = {"F32": np.float32, "F16": np.float16, "F64": np.float64}
