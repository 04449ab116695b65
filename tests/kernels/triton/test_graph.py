"""A decode step's operators captured in a CUDA graph and replayed with other lengths: nothing of the first is baked in."""

import pytest
import torch

from miniserve.kernels import reference
from miniserve.kernels.triton import ops
from miniserve.kernels.triton.moe import moe
from support.paged import paged_batch, relative_error


def captured(work):
    """`work` as a graph, and what it returned."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = work()
    return graph, out


def test_decode_attention_replayed_with_other_lengths_tables_and_padding(device):
    lengths = [700, 33, 1, 129, 64, 300]
    batch = paged_batch(lengths, [1] * 6, slots=64, heads=8, dim=128, dtype=torch.bfloat16, device=device)
    graph, out = captured(lambda: ops.paged_attention(*batch))
    for now in ([1, 2, 1, 100, 63, 5], [700, 0, 1, 0, 64, 300], [0] * 6, lengths):
        batch.context_lens.copy_(torch.tensor(now, dtype=torch.int32))
        batch.q.normal_()
        graph.replay()
        assert relative_error(out, batch.expected()) < 1e-2
        assert not out[[row for row, length in enumerate(now) if length == 0]].any()
    other = batch.block_table.flip(0)
    batch.block_table.copy_(other)
    batch.context_lens.copy_(torch.tensor(lengths[::-1], dtype=torch.int32))
    graph.replay()
    assert relative_error(out, batch.expected()) < 1e-2


def test_rope_store_replayed_with_other_slots(device):
    qkv = torch.randn(4, 8, 64, device=device, dtype=torch.bfloat16)
    angles = torch.randn(4, 32, device=device)
    cos, sin, slots = angles.cos(), angles.sin(), torch.tensor([3, 1, 70, 127], device=device)
    caches = torch.zeros(2, 2, 64, 2, 64, device=device, dtype=torch.bfloat16)
    graph, out = captured(lambda: ops.rope_store(qkv, cos, sin, *caches, slots))
    for now in ([5, -1, 100, -1], [-1] * 4, [0, 1, 2, 3]):
        slots.copy_(torch.tensor(now))
        caches.zero_()
        qkv.normal_()
        expected = torch.zeros_like(caches)
        graph.replay()
        torch.testing.assert_close(out, reference.rope_store(qkv, cos, sin, *expected, slots))
        torch.testing.assert_close(caches, expected)


@pytest.mark.parametrize("tokens", [1, 8])
def test_experts_replayed_with_other_tokens(tokens, device):
    x = torch.randn(tokens, 256, device=device, dtype=torch.bfloat16)
    gate_up = torch.randn(16, 256, 256, device=device, dtype=torch.bfloat16) / 16
    down = torch.randn(16, 256, 128, device=device, dtype=torch.bfloat16) / 11
    weights, ids = reference.route(torch.randn(tokens, 16, device=device), 4, normalize=True)
    graph, out = captured(lambda: moe(x, weights, ids, gate_up, down))
    for _ in range(3):
        fresh_weights, fresh_ids = reference.route(torch.randn(tokens, 16, device=device), 4, normalize=True)
        weights.copy_(fresh_weights)
        ids.copy_(fresh_ids)
        x.normal_()
        graph.replay()
        wide = reference.moe(x.double(), weights.double(), ids, gate_up.double(), down.double())
        assert relative_error(out, wide) < 1e-2


def test_nothing_waits_for_the_device(device):
    """Torch refuses whatever synchronises, in a mode made to find it: mixed batches and prefill too."""
    mixed = paged_batch([5, 33, 90], [5, 1, 60], slots=16, heads=8, dim=64, dtype=torch.bfloat16, device=device)
    x = torch.randn(66, 128, device=device, dtype=torch.bfloat16)
    gate_up, down = (torch.randn(*s, device=device, dtype=torch.bfloat16) for s in ((8, 128, 128), (8, 128, 64)))
    weights, ids = reference.route(torch.randn(66, 8, device=device), 2, normalize=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.paged_attention(*mixed)
        ops.moe(x, weights, ids, gate_up, down)
        ops.add_rms_norm(x, ops.silu_mul(torch.cat((x, x), -1)), x[0], 1e-5)
        ops.argmax(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
