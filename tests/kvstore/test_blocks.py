"""Blocks out of a KV cache and back, and as blocks of another layout."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.errors import InvalidRequestError
from miniserve.kvstore.blocks import BlockCopier
from miniserve.kvstore.conversion import check_convertible, convert
from miniserve.kvstore.layout import KVLayout
from miniserve.model.config import ModelConfig, Rope
from miniserve.runtime.kv_cache import KVCache

CONFIG = ModelConfig("llama", 100, 64, 3, 4, 2, 16, 96, 100, 1e-5, Rope(10000.0))
DTYPES = ["float32", "bfloat16", "float16", "fp8", "int8"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def filled(layout, num_blocks, device="cpu", seed=0):
    """A cache of random bytes, finite as floats."""
    cache = KVCache(CONFIG, num_blocks, layout.block_size, dtype=layout.torch_dtype, device=torch.device(device))
    generator = torch.Generator().manual_seed(seed)
    for tensor in (*cache.keys, *cache.values, *(t for pair in cache.scales for t in pair)):
        tensor.copy_((torch.rand(tensor.shape, generator=generator) * 100).to(tensor.dtype))
    return cache


def layout_of(dtype, block_size=4):
    return KVLayout(
        weights="w", computed="c", num_layers=3, num_kv_heads=2, head_dim=16, block_size=block_size, dtype=dtype
    )


def tensors(cache):
    return [*cache.keys, *cache.values, *(tensor for pair in cache.scales for tensor in pair)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_come_back_bit_by_bit_and_no_others_change(dtype, device):
    layout = layout_of(dtype)
    cache, other = filled(layout, 40, device), filled(layout, 40, device, seed=1)
    before = [tensor.clone() for tensor in tensors(other)]
    source, target = [7, 2, 39, *range(10, 30)], [1, 0, 5, *range(39, 19, -1)]
    copier, back = BlockCopier(cache, layout), BlockCopier(other, layout)
    host = copier.buffers(len(source))
    copier.gather(source, host, copier.mark())
    back.scatter(host, target, back.mark())
    untouched = [block for block in range(40) if block not in target]
    for mine, theirs, was in zip(tensors(cache), tensors(other), before, strict=True):
        raw = [each.view(torch.uint8) for each in (mine, theirs, was)]
        assert torch.equal(raw[0][source], raw[1][target])
        assert torch.equal(raw[1][untouched], raw[2][untouched])


def test_the_order_of_bytes_is_as_documented():
    layout = layout_of("int8")
    cache = filled(layout, 3)
    copier = BlockCopier(cache, layout)
    host = copier.buffers(1)
    copier.gather([2], host, None)
    codes = host[0, : layout.codes_bytes].view(torch.int8).view(3, 2, 4, 2, 16)
    scales = host[0, layout.codes_bytes :].view(torch.float32).view(3, 2, 2, 4)
    for layer in range(3):
        assert torch.equal(codes[layer, 0], cache.keys[layer][2])
        assert torch.equal(codes[layer, 1], cache.values[layer][2])
        assert torch.equal(scales[layer, 1], cache.scales[layer][1][2])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_copy_waits_for_what_was_launched_before_its_mark():
    layout = layout_of("float32")
    cache = filled(layout, 40, "cuda")
    copier = BlockCopier(cache, layout)
    host = copier.buffers(1)
    torch.cuda._sleep(500_000_000)  # some hundred milliseconds of the device
    for tensor in cache.keys:
        tensor[3] = 42.0
    copier.gather([3], host, copier.mark())
    assert (host[0].view(torch.float32).view(3, 2, -1)[:, 0] == 42.0).all()


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    dtype=st.sampled_from(DTYPES), sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)), count=st.integers(1, 5),
    widen=st.booleans(),
)  # fmt: skip
def test_converted_blocks_hold_each_token_at_its_place(dtype, sizes, count, widen):
    source = layout_of(dtype, sizes[0])
    widened = "float32" if widen and dtype in ("bfloat16", "float16") else dtype
    target = replace(source, block_size=sizes[1], dtype=widened)
    cache, num_tokens = filled(source, count), count * sizes[0]
    copier = BlockCopier(cache, source)
    host = copier.buffers(count)
    copier.gather(range(count), host, None)
    converted = convert(host, source, target)
    received = KVCache(CONFIG, len(converted), sizes[1], dtype=target.torch_dtype, device=torch.device("cpu"))
    BlockCopier(received, target).scatter(converted, range(len(converted)), None)
    assert len(converted) == -(-num_tokens // sizes[1])
    for mine, theirs in zip(cache.keys + cache.values, received.keys + received.values, strict=True):
        flat = [each.to(torch.float32).flatten(0, 1) for each in (mine, theirs)]
        assert torch.equal(flat[0], flat[1][:num_tokens])
        assert not flat[1][num_tokens:].any()
    for mine, theirs in zip(cache.scales, received.scales, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert torch.equal(a.transpose(1, 2).flatten(0, 1), b.transpose(1, 2).flatten(0, 1)[:num_tokens])
    if dtype == widened and sizes[0] == sizes[1]:
        assert torch.equal(converted, host)


def test_what_cannot_be_converted_exactly_is_refused_by_name():
    source = layout_of("float32")
    for change, words in (
        ({"dtype": "bfloat16"}, "dtype is float32, not bfloat16"),
        ({"dtype": "fp8"}, "dtype is float32, not fp8"),
        ({"weights": "other"}, "weights is w, not other"),
        ({"ranks": 2}, "ranks is 1, not 2"),
    ):
        with pytest.raises(InvalidRequestError, match=words):
            check_convertible(source, replace(source, **change))
