"""Blocks of one layout as blocks of another, where that is exact: between block sizes, and from 16 to 32 bits.

The same tokens' keys and values are the same numbers whatever blocks they are cut into, and every bfloat16 and float16
is a float32. All else is refused by name: rounding is a decision for who configures the engines, and of other weights,
ranks or formats the bytes mean something else. How the numbers were computed may differ: they arrive as they were sent.
"""

import torch
from torch import Tensor

from miniserve.errors import InvalidRequestError
from miniserve.kvstore.layout import KVLayout
from miniserve.runtime.kv_cache import SCALE_BYTES

WIDER = {("bfloat16", "float32"), ("float16", "float32")}


def check_convertible(source: KVLayout, target: KVLayout) -> None:
    """Raise InvalidRequestError, naming each field in the way, unless `convert` can go from `source` to `target`."""
    bridged = {"block_size", "computed"} | ({"dtype"} if (source.dtype, target.dtype) in WIDER else set())
    found = [each for each in target.differences(source) if each.partition(" ")[0] not in bridged]
    if found:
        raise InvalidRequestError(f"KV blocks cannot be converted exactly: {'; '.join(found)}")


def convert(blocks: Tensor, source: KVLayout, target: KVLayout) -> Tensor:
    """Consecutive blocks of one sequence in another layout.

    Args:
        blocks: [n, source.block_bytes] uint8, from a sequence's first token on.
        source, target: the layouts.

    Returns:
        [m, target.block_bytes] uint8, m as few as hold all tokens; slots behind the last token are zero.

    Raises:
        InvalidRequestError: see `check_convertible`.
    """
    check_convertible(source, target)
    codes, scales = blocks[:, : source.codes_bytes].contiguous(), blocks[:, source.codes_bytes :].contiguous()
    heads, dim, size = source.num_kv_heads, source.head_dim, source.block_size
    tokens = _by_token(codes.view(source.torch_dtype).view(-1, 2 * source.num_layers, size, heads * dim))
    converted = _by_block(tokens.to(target.torch_dtype), target.block_size)
    if not source.has_scales:
        return converted
    by_head = scales.view(torch.uint8).view(-1, 2 * source.num_layers, heads, size * SCALE_BYTES)
    per_token = by_head.view(-1, 2 * source.num_layers, heads, size, SCALE_BYTES).transpose(2, 3).flatten(3)
    packed = _by_block(_by_token(per_token), target.block_size)
    back = packed.view(len(packed), 2 * source.num_layers, target.block_size, heads, SCALE_BYTES).transpose(2, 3)
    return torch.cat([converted, back.flatten(1)], 1)


def _by_token(blocks: Tensor) -> Tensor:
    """[n, parts, size, width] -> [parts, n * size, width]."""
    return blocks.transpose(0, 1).flatten(1, 2)


def _by_block(tokens: Tensor, size: int) -> Tensor:
    """[parts, T, width] -> [ceil(T / size), bytes] uint8, zeros behind the last token."""
    padded = tokens.new_zeros((tokens.shape[0], -(-tokens.shape[1] // size) * size, tokens.shape[2]))
    padded[:, : tokens.shape[1]] = tokens
    parts = padded.view(tokens.shape[0], -1, size, tokens.shape[2]).transpose(0, 1)
    return parts.contiguous().flatten(1).view(torch.uint8)
