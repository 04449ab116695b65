"""Memory in huge pages, for weights that are read from end to end with each token.

A processor looks up where each page of 4 KiB lies; with pages of 2 MiB it does so 512 times less often, and its
prefetcher runs on where it would stop at a page's end. Linux gives such pages to memory that asks for them; where it
does not, this is ordinary memory.
"""

import mmap

import torch
from torch import Tensor

PAGE = 2**21
LINE = 64  # bytes of a cache line, at which each tensor starts


class Arena:
    """One region that tensors are copied into, one behind the other. It lives as long as any of them.

    Args:
        num_bytes: of all tensors together, each rounded up to whole cache lines.
    """

    def __init__(self, num_bytes: int) -> None:
        flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        region = mmap.mmap(-1, max(num_bytes, 1) + PAGE, **flags)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            region.madvise(mmap.MADV_HUGEPAGE)
        self._region = torch.frombuffer(region, dtype=torch.uint8)
        start = -self._region.data_ptr() % PAGE
        self._region, self._used = self._region[start : start + num_bytes], 0

    def copy(self, tensor: Tensor) -> Tensor:
        """The tensor, contiguous, in this region.

        Raises:
            MemoryError: the region is full.
        """
        begin, end = self._used, self._used + tensor.nbytes
        if end > len(self._region):
            raise MemoryError(f"an arena of {len(self._region)} bytes has no room for {tensor.nbytes} more at {begin}")
        self._used = end + -end % LINE
        copied = self._region[begin:end].view(tensor.dtype).view(tensor.shape)
        return copied.copy_(tensor)


def rounded_up(tensor: Tensor) -> int:
    """Bytes that a tensor takes in an arena."""
    return tensor.nbytes + -tensor.nbytes % LINE
