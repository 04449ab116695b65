"""`GGUFFile`: the header of a GGUF file, read with every length checked, and its tensors as arrays.

Layout (little-endian): magic, version, counts; then key/value metadata; then one record per tensor (name, dimensions,
type, offset); then, aligned, the tensors' bytes. A count or a length in the file is believed only if that many bytes
are really there, so a garbled file ends in `CorruptFileError`, never in a long loop or a large allocation.

Block formats (Q4_1, Q8_0 ...) are decoded by the `gguf` package's `dequantize`; the simplest can be had undecoded.
That package's reader is not used: it trusts the counts, and takes seconds for a vocabulary of 49,152 entries where this
takes a tenth. Torch-free.

Source of the layout: the GGUF specification in the ggml project's documentation.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from miniserve.errors import CorruptFileError, TensorError, UnsupportedModelError

_MAGIC = b"GGUF"
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "?", 10: "Q", 11: "q", 12: "d"}
_LENGTH = struct.Struct("<Q")
_MAX_DIMS = 4


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


@dataclass(frozen=True)
class GGUFTensor:
    """Where a tensor lies: `shape` is row-major (rows first), `offset` counts bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int
    num_bytes: int


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
        _HeaderReader(self._bytes, path).read_into(self.metadata, self.tensors)

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


class _HeaderReader:
    """One pass over the header. `at` is the next byte; every read is checked against the file's end."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.at, self.size = data, path, 0, len(data)

    def read_into(self, metadata: dict[str, Any], tensors: dict[str, GGUFTensor]) -> None:
        if self.take(4) != _MAGIC:
            raise CorruptFileError(f"{self.path}: not a GGUF file (it does not begin with 'GGUF')")
        version = self.scalar("I")
        if version not in (2, 3):
            raise UnsupportedModelError(f"{self.path}: GGUF version {version} is not supported, only 2 and 3")
        num_tensors, num_keys = self.scalar("Q"), self.scalar("Q")
        self.expect(num_keys, 8 + 4 + 1, "metadata keys")
        self.expect(num_tensors, 8 + 4 + 8 + 4 + 8, "tensors")
        for _ in range(num_keys):
            key = self.string("a metadata key")
            if key in metadata:
                raise self.corrupt(f"the metadata key {key!r} appears twice")
            metadata[key] = self.value(self.scalar("I"), key)
        records = [self.tensor_record() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment not in (2**n for n in range(3, 17)):
            raise self.corrupt(f"general.alignment is {alignment!r}, not a power of two from 8 to 65536")
        start = -(-self.at // alignment) * alignment
        for name, shape, type_id, offset in records:
            if name in tensors:
                raise TensorError(f"{self.path}: tensor {name} appears twice")
            tensors[name] = self.place(name, shape, type_id, start + offset)

    def tensor_record(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.string("a tensor's name")
        num_dims = self.scalar("I")
        if not 1 <= num_dims <= _MAX_DIMS:
            raise TensorError(f"{self.path}: tensor {name} has {num_dims} dimensions, not 1 to {_MAX_DIMS}")
        fastest_first = [self.scalar("Q") for _ in range(num_dims)]
        return name, tuple(reversed(fastest_first)), self.scalar("I"), self.scalar("Q")

    def place(self, name: str, shape: tuple[int, ...], type_id: int, offset: int) -> GGUFTensor:
        """Turn shape and type into a byte range, and check that the file has those bytes."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            per_block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(type_id)]
        except (ValueError, KeyError) as error:
            raise UnsupportedModelError(f"{self.path}: tensor {name} has the unknown type {type_id}") from error
        if shape[-1] % per_block or 0 in shape:
            raise TensorError(f"{self.path}: tensor {name} has shape {list(shape)}, not whole blocks of {per_block}")
        num_bytes = shape[-1] // per_block * block_bytes
        for length in shape[:-1]:
            num_bytes *= length
        if offset + num_bytes > self.size:
            raise TensorError(
                f"{self.path}: tensor {name} ends at byte {offset + num_bytes}, but the file has {self.size}: "
                "it is truncated or garbled; fetch it again"
            )
        return GGUFTensor(name, shape, type_id, offset, num_bytes)

    def value(self, type_id: int, key: str) -> Any:
        if type_id == _STRING:
            return self.string(key)
        if type_id != _ARRAY:
            return self.scalar(self.format(type_id, key))
        item_type, count = self.scalar("I"), self.scalar("Q")
        if item_type == _STRING:
            return self.strings(count, key)
        if item_type == _ARRAY:
            raise self.corrupt(f"{key} is an array of arrays")
        code = self.format(item_type, key)
        width = struct.calcsize("<" + code)
        self.expect(count, width, key)
        return list(struct.unpack(f"<{count}{code}", self.take(count * width)))

    def format(self, type_id: int, key: str) -> str:
        if type_id not in _SCALARS:
            raise self.corrupt(f"{key} has the unknown value type {type_id}")
        return _SCALARS[type_id]

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self, what: str) -> str:
        raw = self.take(self.scalar("Q"))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.corrupt(f"{what} is not valid UTF-8") from error

    def strings(self, count: int, key: str) -> list[str]:
        """What `string` would give, `count` times: in one loop, since a vocabulary has a hundred thousand."""
        self.expect(count, _LENGTH.size, key)
        found = []
        at = self.at
        for _ in range(count):
            start = at + _LENGTH.size
            if start > self.size:
                raise self.corrupt(f"{key} ends behind the end of the file")
            at = start + _LENGTH.unpack_from(self.data, start - _LENGTH.size)[0]
            if at > self.size:
                raise self.corrupt(f"{key} has a string that ends behind the end of the file")
            found.append(self.data[start:at])
        self.at = at
        try:
            return [raw.decode("utf-8") for raw in found]
        except UnicodeDecodeError as error:
            raise self.corrupt(f"{key} is not valid UTF-8") from error

    def take(self, count: int) -> bytes:
        self.expect(count, 1, "bytes")
        start, self.at = self.at, self.at + count
        return self.data[start : self.at]

    def expect(self, count: int, width: int, what: str) -> None:
        if count * width > self.size - self.at:
            raise self.corrupt(
                f"it claims {count} {what} at byte {self.at}, more than the file can hold: truncated or garbled"
            )

    def corrupt(self, message: str) -> CorruptFileError:
        return CorruptFileError(f"{self.path}: {message}")
