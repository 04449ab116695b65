"""`EightBits`: the weights of a safetensors checkpoint that are codes of 8 bits, together with their scales.

A weight is such a one if its stored type is that of the checkpoint's `StoredFormat`; then it must have a scale, of the
right shape, and each scale must belong to one. That is checked on the headers, before anything is read. A weight is
given either bit by bit, as `Rows`, or expanded to float32. Scales are looked at when they are read: one that is zero,
negative or not finite is refused.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from miniserve.errors import TensorError
from miniserve.kernels.formats import E4M3, INT8, Format
from miniserve.kernels.scaled_gemm import Rows
from miniserve.model.quantization_hf import INPUT_SCALE, STORED_AS, StoredFormat
from miniserve.model.shards import Stored

BY_NAME = {format.name: format for format in (E4M3, INT8)}
SCALE_TYPES = ("F32", "F16", "BF16")


class EightBits:
    """See above.

    Args:
        stored: how the weights are stored; None: there are none.
        headers: of all tensors, by name.
        read: reads one of them.
        label: names one in an error message, with its file.

    Raises:
        TensorError: a weight without a scale, a scale without a weight, or shapes that do not fit.
    """

    def __init__(
        self,
        stored: StoredFormat | None,
        headers: Mapping[str, Stored],
        read: Callable[[str], Tensor],
        label: Callable[[str], str],
    ) -> None:
        self._stored, self._read, self._label = stored, read, label
        self._weights: set[str] = set()
        self.companions: set[str] = set()  # scales, which are no weights of the decoder
        if stored is None:
            return
        self._weights = {name for name, header in headers.items() if header.dtype == STORED_AS[stored.name]}
        for name in sorted(self._weights):
            self._check(stored, name, headers)
            self.companions.add(stored.scale_of(name))
        for name in headers:
            if name.endswith((f".{stored.suffix}", INPUT_SCALE)):
                weight = name.rpartition(".")[0] + ".weight"
                if weight not in self._weights:
                    raise TensorError(f"{label(name)} is a scale, and {weight} is not stored in {stored.name}")
                self.companions.add(name)

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def _check(self, stored: StoredFormat, name: str, headers: Mapping[str, Stored]) -> None:
        shape, scale = headers[name].shape, stored.scale_of(name)
        if not name.endswith(".weight") or len(shape) != 2:
            raise TensorError(f"{self._label(name)} {list(shape)} is stored in {stored.name}: only matrices can be")
        if scale not in headers:
            raise TensorError(f"{self._label(name)} is stored in {stored.name}, and its scale {scale} is missing")
        if headers[scale].dtype not in SCALE_TYPES:
            raise TensorError(f"{self._label(scale)} is stored as {headers[scale].dtype}, not {SCALE_TYPES}")
        allowed = stored.scale_shapes(shape)
        if headers[scale].shape not in allowed:
            wanted = " or ".join(str(list(each)) for each in allowed)
            raise TensorError(f"{self._label(scale)} has shape {list(headers[scale].shape)}, not {wanted}")

    def row_format(self, name: str) -> Format | None:
        """E4M3 or INT8 for a weight of which no two columns have different scales; else None."""
        if self._stored is None or name not in self._weights or not self._stored.has_row_scales:
            return None
        return BY_NAME[self._stored.name]

    def rows(self, name: str) -> Rows:
        """A weight for which there is a `row_format`, as it is stored.

        Raises:
            TensorError: a scale is none.
        """
        codes = self._read(name)
        return Rows(codes, self._scale(name).reshape(-1, 1).expand(len(codes), 1).contiguous())

    def expanded(self, name: str) -> Tensor:
        """A weight [N, K] as the codes times their scales, float32.

        Raises:
            TensorError: a scale is none.
        """
        assert self._stored is not None
        codes, scale = self._read(name), self._scale(name)
        if isinstance(self._stored.shared_by, tuple):
            for axis, size in enumerate(self._stored.shared_by):
                scale = scale.repeat_interleave(size, axis).narrow(axis, 0, codes.shape[axis])
            return codes.float() * scale
        return codes.float() * scale.reshape(-1, 1)

    def _scale(self, name: str) -> Tensor:
        assert self._stored is not None
        companion = self._stored.scale_of(name)
        scale = self._read(companion).to(torch.float32)
        if not bool((scale.isfinite() & (scale > 0)).all()):
            raise TensorError(f"{self._label(companion)} holds a scale that is not finite, or not above zero")
        return scale
