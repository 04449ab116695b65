"""`KVCache`: the memory behind the block table, and how much of it there can be.

Per layer two tensors [num_blocks, block_size, G, D], keys and values apart; block i of every layer belongs to whoever
holds block i of the `BlockPool`. Nothing here knows who that is.

Keys and values may have 8 bits. Then each head of each token has a scale, in tensors [num_blocks, G, block_size]: it is
part of block i like the codes themselves, so that a block that is shared, kept or moved goes on standing for the same
numbers. A constant for each layer would take no memory, but has to be known before the first token, and what lies
beyond its range would be lost in silence.
"""

from typing import NamedTuple

import psutil
import torch
from torch import Tensor

from miniserve.errors import InvalidRequestError
from miniserve.model.choices import Choices, without_fp8
from miniserve.model.config import ModelConfig

KV_DTYPES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
SCALE_BYTES = 4


class KVCache:
    """Keys and values of every layer.

    Args:
        config: sizes.
        num_blocks: how many blocks.
        block_size: tokens a block holds.
        dtype: of keys and values: a float type, or one of `KV_DTYPES`, then with scales.
        device: where they live.
    """

    def __init__(
        self, config: ModelConfig, num_blocks: int, block_size: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (num_blocks, block_size, config.num_kv_heads, config.head_dim)
        # Not zeroed: what was never written is never read, and on a CPU untouched pages cost nothing.
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self.scales: list[tuple[Tensor, Tensor]] = []  # of keys and of values
        if dtype in KV_DTYPES.values():
            shape = (2, num_blocks, config.num_kv_heads, block_size)
            layers = (torch.empty(shape, dtype=torch.float32, device=device) for _ in range(config.num_layers))
            self.scales = [(both[0], both[1]) for both in layers]

    @property
    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of every layer."""
        return list(zip(self.keys, self.values, strict=True))

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer."""
        return self.keys[index], self.values[index]

    def layer_scales(self, index: int) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """The scales of one layer's keys and values, if they have 8 bits."""
        return self.scales[index] if self.scales else (None, None)


def block_bytes(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Memory of one block over all layers, scales included."""
    scales = 2 * config.num_layers * config.num_kv_heads * SCALE_BYTES if dtype in KV_DTYPES.values() else 0
    return (config.kv_bytes_per_token(dtype.itemsize) + scales) * block_size


def choose_kv_dtype(name: str, choices: Choices) -> torch.dtype:
    """The type of keys and values called `name`: "auto", that of the weights; or "fp8" or "int8".

    Raises:
        InvalidRequestError: no such type, or the backend cannot read it.
    """
    if name == "auto":
        return choices.dtype
    if name not in KV_DTYPES:
        raise InvalidRequestError(f"kv_cache_dtype {name!r} is not one of auto, {', '.join(KV_DTYPES)}")
    reason = None
    if choices.backend == "cpu":
        reason = "the C++ kernels read keys and values of 16 and 32 bits; backend 'torch' takes it"
    elif choices.backend == "triton" and name == "fp8":
        reason = without_fp8(choices.device, choices.backend)
    if reason:
        raise InvalidRequestError(f"kv_cache_dtype {name!r} does not work here: {reason}")
    return KV_DTYPES[name]


def free_memory(device: torch.device) -> int:
    """Bytes that could be allocated on `device` now.

    On a GPU with what PyTorch has kept of tensors that are gone; on a CPU what the system calls available: what can be
    had without swapping.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return int(psutil.virtual_memory().available)


class CacheSize(NamedTuple):
    """What was chosen: blocks in the pool, and the longest request that is let in."""

    num_blocks: int
    max_model_len: int


def choose_size(
    config: ModelConfig,
    *,
    block_size: int,
    dtype: torch.dtype,
    memory_bytes: int,
    max_num_seqs: int,
    max_model_len: int | None = None,
) -> CacheSize:
    """As many blocks as fit into the memory, but no more than `max_num_seqs` of the longest requests need.

    Args:
        config: the model.
        block_size: tokens of a block; at least 1.
        dtype: of keys and values.
        memory_bytes: what they may take.
        max_num_seqs: most requests at once; at least 1.
        max_model_len: the longest request in tokens; None: the model's, or what fits if that is less.

    Raises:
        InvalidRequestError: the model is not made for `max_model_len`, or the memory cannot hold it. Names the numbers.
    """
    longest = config.max_position_embeddings
    if max_model_len is not None and not 1 <= max_model_len <= longest:
        raise InvalidRequestError(f"max_model_len is {max_model_len}: this model's context holds 1 to {longest} tokens")
    size = block_bytes(config, block_size, dtype)
    fitting = memory_bytes // size
    wanted = -(-(max_model_len or min(longest, block_size)) // block_size)
    if fitting < wanted:
        raise InvalidRequestError(
            f"max_model_len {max_model_len or wanted * block_size} needs {wanted} KV blocks of {block_size} tokens, "
            f"{wanted * size / 2**20:.1f} MiB; the KV cache may take {memory_bytes / 2**20:.1f} MiB, which holds "
            f"{fitting * block_size} tokens. Lower max_model_len, or raise kv_cache_memory"
        )
    chosen = max_model_len or min(longest, fitting * block_size)
    return CacheSize(min(fitting, -(-chosen // block_size) * max_num_seqs), chosen)
