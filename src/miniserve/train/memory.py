"""What a run takes of its device's memory."""

import psutil
import torch


def memory_bytes(device: torch.device) -> int:
    """Of a GPU, the most that tensors have taken since the process began; of a CPU, what the process takes now."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss)
