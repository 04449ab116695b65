"""Paged attention: decode against the memory's bandwidth, prefill against the tensor cores and torch's own."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels.setting import Row, Setting
from miniserve.kernels.triton.attention import paged_attention
from miniserve.kernels.triton.configs import (
    AttentionConfig,
    capability,
    decode_config,
    multiprocessors,
    num_splits,
    prefill_config,
)

EIGHT_BITS = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
WIDTH = 16  # a block table's width is a multiple of it


class Case(NamedTuple):
    """B sequences of `context` tokens, the last `new` of each to compute."""

    batch: int
    context: int
    new: int
    heads: int
    kv_heads: int
    dim: int
    slots: int = 64
    kv: str = "bf16"

    def arguments(self, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
        """What `paged_attention` takes: random keys and values in scattered blocks."""
        blocks = -(-self.context // self.slots)
        shape = (self.batch * blocks, self.slots, self.kv_heads, self.dim)
        caches = [_random(shape, EIGHT_BITS.get(self.kv, dtype), device) for _ in range(2)]
        table = torch.zeros(self.batch, self.width, dtype=torch.int32, device=device)
        table[:, :blocks] = torch.randperm(shape[0], device=device).view(self.batch, blocks)
        q = torch.randn(self.batch * self.new, self.heads, self.dim, device=device, dtype=dtype)
        start = torch.arange(self.batch + 1, dtype=torch.int32, device=device) * self.new
        lengths = torch.full((self.batch,), self.context, dtype=torch.int32, device=device)
        return [q, *caches, start, lengths, table]

    def scales(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Of keys and values in 8 bits."""
        if self.kv not in EIGHT_BITS:
            return {}
        shape = (self.batch * -(-self.context // self.slots), self.kv_heads, self.slots)
        return {name: torch.rand(shape, device=device) for name in ("k_scale", "v_scale")}

    @property
    def width(self) -> int:
        """Of the block table."""
        return -(-self.context // self.slots // WIDTH) * WIDTH

    @property
    def compiled_as(self) -> tuple[object, ...]:
        """Cases that are alike in this run the same compiled kernels."""
        batch = self.batch == 1 if self.new > 1 else None
        return self.heads // self.kv_heads, self.dim, self.slots, self.kv, self.new > 1, batch

    @property
    def decode_bytes(self) -> int:
        """What a decode step has to move: keys, values, queries, outputs."""
        head = self.dim + 4 if self.kv in EIGHT_BITS else 2 * self.dim
        return 2 * self.batch * (self.context * self.kv_heads * head + 2 * self.heads * self.dim)

    @property
    def flops(self) -> float:
        """Of both products over the keys that each query sees."""
        seen = self.new * (self.context - self.new) + self.new * (self.new + 1) / 2
        return 4 * self.batch * self.heads * self.dim * seen


LLAMA, QWEN = (32, 8, 128), (16, 8, 128)  # heads, key/value heads and dimension of Llama 3.1 8B and Qwen3 0.6B
DECODES = [
    Case(128, 4096, 1, *LLAMA),
    Case(64, 2048, 1, *LLAMA),
    Case(64, 2047, 1, *LLAMA),
    Case(8, 4096, 1, *LLAMA),
    Case(1, 8192, 1, *LLAMA),
    Case(1, 131072, 1, *LLAMA),
    Case(256, 1024, 1, *QWEN),
    Case(64, 2048, 1, *LLAMA, slots=16),
    Case(128, 4096, 1, *LLAMA, kv="fp8"),
    Case(8, 4096, 1, *LLAMA, kv="fp8"),
    Case(128, 4096, 1, *LLAMA, kv="int8"),
    Case(32, 2048, 1, 32, 32, 128),  # Llama 2 7B: no groups
    Case(64, 2048, 1, 24, 8, 64),
]
PREFILLS = [
    Case(1, 8192, 8192, *LLAMA),
    Case(1, 2048, 2048, *LLAMA),
    Case(4, 2048, 2048, *LLAMA),
    Case(1, 8192, 2048, *LLAMA),
    Case(1, 8192, 8192, *LLAMA, slots=16),
]
TINY_DECODES = [Case(2, 40, 1, 4, 2, 64, 16), Case(2, 33, 1, 4, 2, 64, 16, "fp8"), Case(2, 33, 1, 4, 2, 64, 16, "int8")]
TINY_PREFILLS = [Case(1, 48, 48, 4, 2, 64, 16), Case(1, 48, 16, 4, 2, 64, 16)]
DECODE_TILES = [
    AttentionConfig(16, tile, warps, stages)
    for tile, warps, stages in [
        (64, 4, 3), (64, 4, 2), (64, 4, 4), (64, 2, 3), (64, 2, 4), (64, 8, 3), (32, 2, 4), (32, 2, 6), (32, 4, 4),
        (32, 1, 3), (32, 1, 4), (32, 1, 6), (128, 4, 2), (128, 4, 3), (128, 8, 3),
    ]
]  # fmt: skip
PREFILL_TILES = [
    AttentionConfig(*tiles)
    for tiles in [
        (128, 64, 8, 3), (128, 64, 8, 2), (128, 64, 8, 4), (128, 128, 8, 2), (128, 128, 8, 3), (128, 32, 4, 3),
        (128, 32, 4, 4), (64, 64, 4, 3), (64, 64, 4, 2), (64, 128, 4, 2), (128, 64, 4, 2), (128, 64, 4, 3),
        (256, 64, 8, 2), (256, 64, 8, 3), (256, 32, 8, 3), (128, 64, 16, 3),
    ]
]  # fmt: skip
TINY_TILES = [AttentionConfig(16, 16, 4, 2)]


def compile_for(case: Case, config: AttentionConfig) -> None:
    """Compile what `case` needs, for a search to find it: the same types and divisors, little memory."""
    small = case._replace(context=case.slots * WIDTH, new=1 if case.new == 1 else case.slots)
    device = torch.device("cuda")
    for splits in (1, 2) if case.new == 1 else (1,):
        arguments, scales = small.arguments(device, torch.bfloat16), small.scales(device)
        paged_attention(*arguments, **scales, decode=config, prefill=config, splits=splits)


def decode(setting: Setting) -> Iterator[Row]:
    """Microseconds, bytes a second and their share of the ceiling, by the table's tiles and by the best of a search."""
    for case in TINY_DECODES if setting.tiny else DECODES:
        sets = [
            partial(paged_attention, *case.arguments(setting.device, torch.bfloat16), **case.scales(setting.device))
            for _ in range(setting.num_sets(case.decode_bytes))
        ]
        row_bytes = case.dim * 2
        table = decode_config(capability(setting.device), row_bytes, eight_bits=case.kv in EIGHT_BITS)
        longest = case.width * case.slots
        slices = {
            config: num_splits(case.batch * case.kv_heads, longest, config.tile, multiprocessors(setting.device))
            for config in [table, *(TINY_TILES if setting.tiny else DECODE_TILES)]
        }

        def measure(choice: tuple[AttentionConfig, int], sets: list = sets) -> float:
            config, splits = choice
            return setting.time([partial(each, decode=config, splits=splits) for each in sets])

        seconds, failed = setting.best(list(slices.items()), measure)
        for config, splits in sorted(seconds, key=seconds.__getitem__)[:2]:
            others = [max(1, splits * 2), splits * 4, max(1, splits // 2), max(1, splits // 4)]
            more, _ = setting.best([(config, n) for n in others if (config, n) not in seconds], measure)
            seconds |= more
        best = min(seconds, key=seconds.__getitem__)
        row: Row = case._asdict()
        for name, choice in (("table", (table, slices[table])), ("best", best)):
            if choice in seconds:
                rate = case.decode_bytes / seconds[choice]
                row[name] = _shown(choice[0], seconds[choice]) | {
                    "splits": choice[1], "bytes_per_s": rate, "share": setting.share("bytes_per_s", rate)
                }  # fmt: skip
        row["search"] = [_shown(config, s) | {"splits": splits} for (config, splits), s in seconds.items()]
        yield row | {"failed": failed}


def prefill(setting: Setting) -> Iterator[Row]:
    """FLOPs a second and their share of a large product's, beside torch's kernels on contiguous keys and values."""
    for case in TINY_PREFILLS if setting.tiny else PREFILLS:
        arguments = case.arguments(setting.device, torch.bfloat16)
        table = prefill_config(capability(setting.device), case.dim * 2)
        candidates = list(dict.fromkeys([table, *(TINY_TILES if setting.tiny else PREFILL_TILES)]))

        def measure(config: AttentionConfig, arguments: list = arguments) -> float:
            return setting.time([partial(paged_attention, *arguments, prefill=config)])

        seconds, failed = setting.best(candidates, measure)
        row: Row = case._asdict()
        for name, config in (("table", table), ("best", min(seconds, key=seconds.__getitem__))):
            if config in seconds:
                rate = case.flops / seconds[config]
                row[name] = _shown(config, seconds[config]) | {
                    "flops_per_s": rate, "share": setting.share("bf16_flops_per_s", rate)
                }  # fmt: skip
        row["search"] = [_shown(config, s) for config, s in seconds.items()]
        row["torch"] = _torch(setting, case) if case.new == case.context else {}
        yield row | {"failed": failed}


def _torch(setting: Setting, case: Case) -> Row:
    """FLOPs a second of torch's attention, by backend; or why not."""
    q, k, v = (
        torch.randn(case.batch, heads, case.new, case.dim, device=setting.device, dtype=torch.bfloat16)
        for heads in (case.heads, case.kv_heads, case.kv_heads)
    )
    found: Row = {}
    backends = (SDPBackend.MATH,) if setting.tiny else (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)
    for backend in backends:
        try:
            with sdpa_kernel(backend):
                seconds = setting.time(
                    [lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)]
                )
            found[backend.name.lower()] = case.flops / seconds
        except Exception as error:
            found[backend.name.lower()] = f"{type(error).__name__}: {error}"[:200]
    return found


def _random(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Noise; of INT8 over all that it can say, for zeros are read as fast as anything but multiplied with less heat."""
    if dtype is torch.int8:
        return torch.randint(-127, 128, shape, dtype=dtype, device=device)
    return torch.randn(shape, device=device, dtype=torch.bfloat16).to(dtype)


def _shown(config: AttentionConfig, seconds: float) -> Row:
    assert math.isfinite(seconds)
    return asdict(config) | {"us": seconds * 1e6}
