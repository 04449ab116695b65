"""Many tiles, and the GPU's own, too long for the interpreter: against the reference in float64."""

import pytest
import torch

from miniserve.kernels import reference
from miniserve.kernels.triton.attention import paged_attention
from miniserve.kernels.triton.moe import moe
from support.paged import in_eight_bits, paged_batch, relative_error

LENGTHS = {
    "decode": ([3000, 1, 777, 64, 65, 2049], [1] * 6),
    "prefill": ([1500], [1500]),
    "prefill with prefix": ([1100, 900], [300, 64]),
    "mixed": ([1000, 33, 1, 517, 2048], [1000, 1, 1, 200, 1]),
}
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@pytest.mark.parametrize("batch", LENGTHS)
@pytest.mark.parametrize(
    ("dtype", "heads", "kv_heads", "dim", "slots"),
    [
        (torch.bfloat16, 32, 8, 128, 64),
        (torch.bfloat16, 14, 2, 64, 16),
        (torch.bfloat16, 4, 4, 128, 32),
        (torch.float16, 9, 3, 64, 48),
        (torch.bfloat16, 6, 2, 96, 128),
        (torch.bfloat16, 16, 1, 80, 64),
        (torch.float32, 4, 2, 128, 64),
        (torch.float32, 6, 2, 16, 4),
    ],
)
def test_equals_the_reference(batch, dtype, heads, kv_heads, dim, slots, device):
    lengths, news = LENGTHS[batch]
    arguments = paged_batch(
        lengths, news, slots=slots, heads=heads, kv_heads=kv_heads, dim=dim, dtype=dtype, device=device
    )
    assert relative_error(paged_attention(*arguments), arguments.expected()) < TOLERANCE[dtype]


@pytest.mark.parametrize("batch", LENGTHS)
def test_fp8_cache(batch, device):
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("Triton has no E4M3 before 8.9")
    lengths, news = LENGTHS[batch]
    wide = paged_batch(lengths, news, slots=64, heads=32, kv_heads=8, dim=128, dtype=torch.bfloat16, device=device)
    narrow, scales, meant = in_eight_bits(wide, torch.float8_e4m3fn)
    assert relative_error(paged_attention(*narrow, **scales), meant.expected()) < 1e-2


def test_the_same_bits_every_time(device):
    """An error that moves would be a race."""
    arguments = paged_batch(
        [1000, 33, 517], [1000, 1, 200], slots=64, heads=32, kv_heads=8, dim=128, dtype=torch.bfloat16, device=device
    )
    first = paged_attention(*arguments)
    assert all(torch.equal(paged_attention(*arguments), first) for _ in range(10))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("tokens", "experts"), [(5000, 8), (700, 60), (64, 128)])
def test_experts(tokens, experts, dtype, device):
    """More assignments than are scanned at a time, experts with several tiles, and with none."""
    generator = torch.Generator(device).manual_seed(tokens)
    x, gate_up, down, router = (
        torch.randn(*shape, generator=generator, device=device, dtype=torch.float32)
        for shape in ((tokens, 256), (experts, 192, 256), (experts, 256, 96), (tokens, experts))
    )
    x, gate_up, down = x.to(dtype), (gate_up / 16).to(dtype), (down / 10).to(dtype)
    router[:, 1] = -100  # an expert that no token wants
    weights, ids = reference.route(router, 2, normalize=True)
    expected = reference.moe(x.double(), weights.double(), ids, gate_up.double(), down.double())
    assert relative_error(moe(x, weights, ids, gate_up, down), expected) < TOLERANCE[dtype]
