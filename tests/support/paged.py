"""Batches over a paged cache: blocks scattered, and every slot that no sequence owns poisoned with NaN."""

from typing import NamedTuple

import torch

from miniserve.kernels.reference import paged_attention


class PagedBatch(NamedTuple):
    """The arguments of `paged_attention`."""

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    query_start: torch.Tensor
    context_lens: torch.Tensor
    block_table: torch.Tensor

    def expected(self) -> torch.Tensor:
        """By the reference, in float64."""
        q, k, v, *places = self
        return paged_attention(q.double(), k.double(), v.double(), *places)


def paged_batch(lengths, news, *, slots, heads=4, kv_heads=2, dim=64, dtype=torch.float32, kv_dtype=None, device="cpu"):
    """Sequences of `lengths` tokens, the last `news` of each new."""
    generator = torch.Generator().manual_seed(len(lengths) * 100 + sum(lengths))
    blocks_of = [-(-length // slots) for length in lengths]
    total = sum(blocks_of) + 3
    order = torch.randperm(total, generator=generator).tolist()
    caches = torch.full((2, total, slots, kv_heads, dim), torch.nan)
    table = torch.full((len(lengths), max(blocks_of) + 2), order[-1], dtype=torch.int32)  # unused: a poisoned block
    for row, length in enumerate(lengths):
        blocks = torch.tensor([order.pop(0) for _ in range(blocks_of[row])], dtype=torch.int64)
        table[row, : len(blocks)] = blocks.int()
        at = torch.arange(length)
        if length:
            drawn = torch.randn(2, length, kv_heads, dim, generator=generator)
            caches[:, blocks[at // slots], at % slots] = drawn
    q = torch.randn(sum(news), heads, dim, generator=generator)
    start = torch.tensor([0, *torch.tensor(news).cumsum(0).tolist()], dtype=torch.int32)
    k, v = caches.to(kv_dtype or dtype)
    parts = q.to(dtype), k, v, start, torch.tensor(lengths, dtype=torch.int32), table
    return PagedBatch(*(part.to(device) for part in parts))


def in_eight_bits(batch, kv_dtype, seed=0):
    """The batch with keys and values in 8 bits, their scales, and the batch that both stand for.

    Scales are anything, not what a store would choose. Slots of nobody keep a poisoned code and a poisoned scale.
    """
    generator = torch.Generator().manual_seed(seed)
    codes, scales, meant = [], [], []
    for cache in (batch.k_cache, batch.v_cache):
        scale = torch.rand(cache.shape[:3], generator=generator).to(cache.device) * 0.02 + 0.005
        scale[cache[..., 0].isnan()] = torch.nan
        code = (cache.float() / scale[..., None]).clamp(-448, 448).to(torch.float8_e4m3fn)
        if kv_dtype is torch.int8:
            code = (cache.float() / scale[..., None]).clamp(-127, 127).nan_to_num(nan=113).to(torch.int8)
        codes.append(code)
        scales.append(scale.transpose(1, 2).contiguous())
        meant.append(code.double() * scale.double()[..., None])
    k, v = codes
    scaled = {"k_scale": scales[0], "v_scale": scales[1]}
    return batch._replace(k_cache=k, v_cache=v), scaled, batch._replace(k_cache=meant[0], v_cache=meant[1])


def relative_error(got, expected):
    """‖got − expected‖ / ‖expected‖; NaN anywhere gives NaN, which is below no tolerance."""
    return ((got.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30)).item()
