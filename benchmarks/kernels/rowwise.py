"""Norms, SiLU and rotary embedding: bytes a second beside plain torch's, which makes several passes."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from kernels.setting import Row, Setting
from miniserve.kernels import reference
from miniserve.kernels.triton import rowwise as ours

HIDDEN, INNER, HEADS, KV_HEADS, DIM, SLOTS = 4096, 14336, 32, 8, 128, 64  # Llama 3.1 8B
TOKENS = (1, 64, 8192)


def rowwise(setting: Setting) -> Iterator[Row]:
    """Each operator at a few numbers of tokens."""
    for tokens in (3,) if setting.tiny else TOKENS:
        for name, (bytes_per_token, make) in _cases(setting, tokens).items():
            nbytes = bytes_per_token * tokens
            sets = [make() for _ in range(setting.num_sets(nbytes))]
            row: Row = {"name": name, "tokens": tokens, "bytes": nbytes}
            for who, module in (("ours", ours), ("torch", reference)):
                operator = getattr(module, name)
                # The reference's store asks the device which slots are real: no graph can hold that.
                graph = not (who == "torch" and name == "rope_store")
                seconds = setting.time([partial(operator, *each) for each in sets], graph=graph)
                rate = nbytes / seconds
                row[who] = {"us": seconds * 1e6, "bytes_per_s": rate, "share": setting.share("bytes_per_s", rate)}
                row[who]["graph"] = graph
            yield row


def _cases(setting: Setting, tokens: int) -> dict[str, tuple[float, Callable[[], list[Any]]]]:
    """Of each operator the bytes that a token has to move, and what makes its arguments."""
    hidden, inner = (64, 96) if setting.tiny else (HIDDEN, INNER)
    draw = partial(torch.randn, tokens, device=setting.device, dtype=torch.bfloat16)
    weight = torch.randn(hidden, device=setting.device, dtype=torch.bfloat16)
    return {
        "rms_norm": (4.0 * hidden, lambda: [draw(hidden), weight, 1e-5]),
        "add_rms_norm": (8.0 * hidden, lambda: [draw(hidden), draw(hidden), weight, 1e-5]),
        "silu_mul": (6.0 * inner, lambda: [draw(2 * inner)]),
        "rope_store": (4.0 * (HEADS + 2 * KV_HEADS) * DIM + 4 * DIM, partial(_rope_case, setting.device, tokens)),
    }


def _rope_case(device: torch.device, tokens: int) -> list[Any]:
    qkv = torch.randn(tokens, HEADS + 2 * KV_HEADS, DIM, device=device, dtype=torch.bfloat16)
    angles = torch.randn(tokens, DIM // 2, device=device)
    blocks = -(-tokens // SLOTS)
    caches = [torch.zeros(blocks, SLOTS, KV_HEADS, DIM, device=device, dtype=torch.bfloat16) for _ in range(2)]
    return [qkv, angles.cos(), angles.sin(), *caches, torch.randperm(blocks * SLOTS, device=device)[:tokens]]
