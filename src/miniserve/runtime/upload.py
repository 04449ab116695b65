"""From the host to the device without waiting for the device.

A copy from pageable memory makes the host wait for all that was launched before; one from pinned memory does not.
PyTorch keeps a pinned tensor's memory from being used again until the copies from it have been made.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def upload(values: "Sequence[object] | np.ndarray", device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """The values as a tensor on the device; on a CPU an array's memory is shared."""
    host = torch.from_numpy(values) if isinstance(values, np.ndarray) else torch.tensor(values, dtype=dtype)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host
