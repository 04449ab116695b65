"""`HeaderReader`: the header of a GGUF file, with every length checked: its metadata, and where its tensors lie.

Layout (little-endian): magic, version, counts; then key/value metadata; then one record per tensor (name, dimensions,
type, offset); then, aligned, the tensors' bytes. A count or a length in the file is believed only if that many bytes
are really there, so a garbled file ends in `CorruptFileError`, never in a long loop or a large allocation.

The `gguf` package's reader is not used: it trusts the counts, and takes seconds for a vocabulary of 49,152 entries
where this takes a tenth. Torch-free.

Source of the layout: the GGUF specification in the ggml project's documentation.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miniserve.errors import CorruptFileError, TensorError, UnsupportedModelError

_MAGIC = b"GGUF"
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "?", 10: "Q", 11: "q", 12: "d"}
_LENGTH = struct.Struct("<Q")
_MAX_DIMS = 4


@dataclass(frozen=True)
class GGUFTensor:
    """Where a tensor lies: `shape` is row-major (rows first), `offset` counts bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int
    num_bytes: int


class HeaderReader:
    """One pass over the header of a file's bytes; every read is checked against the file's end."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data, self._path, self._size = data, path, len(data)
        self._at = 0  # the next byte

    def read_into(self, metadata: dict[str, Any], tensors: dict[str, GGUFTensor]) -> None:
        """Read it all, into two empty dicts: metadata by key, tensors by name.

        Raises:
            CorruptFileError: it is truncated or contradicts itself. TensorError: of one tensor.
            UnsupportedModelError: a version or a tensor type that is not implemented.
        """
        if self._take(4) != _MAGIC:
            raise CorruptFileError(f"{self._path}: not a GGUF file (it does not begin with 'GGUF')")
        version = self._scalar("I")
        if version not in (2, 3):
            raise UnsupportedModelError(f"{self._path}: GGUF version {version} is not supported, only 2 and 3")
        num_tensors, num_keys = self._scalar("Q"), self._scalar("Q")
        self._expect(num_keys, 8 + 4 + 1, "metadata keys")
        self._expect(num_tensors, 8 + 4 + 8 + 4 + 8, "tensors")
        for _ in range(num_keys):
            key = self._string("a metadata key")
            if key in metadata:
                raise self._corrupt(f"the metadata key {key!r} appears twice")
            metadata[key] = self._value(self._scalar("I"), key)
        records = [self._tensor_record() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment not in (2**n for n in range(3, 17)):
            raise self._corrupt(f"general.alignment is {alignment!r}, not a power of two from 8 to 65536")
        start = -(-self._at // alignment) * alignment
        for name, shape, type_id, offset in records:
            if name in tensors:
                raise TensorError(f"{self._path}: tensor {name} appears twice")
            tensors[name] = self._place(name, shape, type_id, start + offset)

    def _tensor_record(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string("a tensor's name")
        num_dims = self._scalar("I")
        if not 1 <= num_dims <= _MAX_DIMS:
            raise TensorError(f"{self._path}: tensor {name} has {num_dims} dimensions, not 1 to {_MAX_DIMS}")
        fastest_first = [self._scalar("Q") for _ in range(num_dims)]
        return name, tuple(reversed(fastest_first)), self._scalar("I"), self._scalar("Q")

    def _place(self, name: str, shape: tuple[int, ...], type_id: int, offset: int) -> GGUFTensor:
        """Turn shape and type into a byte range, and check that the file has those bytes."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            per_block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(type_id)]
        except (ValueError, KeyError) as error:
            raise UnsupportedModelError(f"{self._path}: tensor {name} has the unknown type {type_id}") from error
        if shape[-1] % per_block or 0 in shape:
            raise TensorError(f"{self._path}: tensor {name} has shape {list(shape)}, not whole blocks of {per_block}")
        num_bytes = shape[-1] // per_block * block_bytes
        for length in shape[:-1]:
            num_bytes *= length
        if offset + num_bytes > self._size:
            raise TensorError(
                f"{self._path}: tensor {name} ends at byte {offset + num_bytes}, but the file has {self._size}: "
                "it is truncated or garbled; fetch it again"
            )
        return GGUFTensor(name, shape, type_id, offset, num_bytes)

    def _value(self, type_id: int, key: str) -> Any:
        if type_id == _STRING:
            return self._string(key)
        if type_id != _ARRAY:
            return self._scalar(self._format(type_id, key))
        item_type, count = self._scalar("I"), self._scalar("Q")
        if item_type == _STRING:
            return self._strings(count, key)
        if item_type == _ARRAY:
            raise self._corrupt(f"{key} is an array of arrays")
        code = self._format(item_type, key)
        width = struct.calcsize("<" + code)
        self._expect(count, width, key)
        return list(struct.unpack(f"<{count}{code}", self._take(count * width)))

    def _format(self, type_id: int, key: str) -> str:
        if type_id not in _SCALARS:
            raise self._corrupt(f"{key} has the unknown value type {type_id}")
        return _SCALARS[type_id]

    def _scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def _string(self, what: str) -> str:
        raw = self._take(self._scalar("Q"))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._corrupt(f"{what} is not valid UTF-8") from error

    def _strings(self, count: int, key: str) -> list[str]:
        """What `_string` would give, `count` times: in one loop, since a vocabulary has a hundred thousand."""
        self._expect(count, _LENGTH.size, key)
        found = []
        at = self._at
        for _ in range(count):
            start = at + _LENGTH.size
            if start > self._size:
                raise self._corrupt(f"{key} ends behind the end of the file")
            at = start + _LENGTH.unpack_from(self._data, start - _LENGTH.size)[0]
            if at > self._size:
                raise self._corrupt(f"{key} has a string that ends behind the end of the file")
            found.append(self._data[start:at])
        self._at = at
        try:
            return [raw.decode("utf-8") for raw in found]
        except UnicodeDecodeError as error:
            raise self._corrupt(f"{key} is not valid UTF-8") from error

    def _take(self, count: int) -> bytes:
        self._expect(count, 1, "bytes")
        start, self._at = self._at, self._at + count
        return self._data[start : self._at]

    def _expect(self, count: int, width: int, what: str) -> None:
        if count * width > self._size - self._at:
            raise self._corrupt(
                f"it claims {count} {what} at byte {self._at}, more than the file can hold: truncated or garbled"
            )

    def _corrupt(self, message: str) -> CorruptFileError:
        return CorruptFileError(f"{self._path}: {message}")
