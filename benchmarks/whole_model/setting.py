"""What every section needs: the device, its measured limits, decoders with random weights, and engines around them."""

import gc
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from miniserve.bench.timing import seconds_per_call
from miniserve.core.block_pool import BlockPool
from miniserve.core.engine import Engine
from miniserve.core.executor import Scheduled, Step
from miniserve.core.request import Request
from miniserve.core.sampling_params import Limits
from miniserve.core.scheduler import Scheduler
from miniserve.kernels import reference
from miniserve.kernels.expert_stack import ExpertStack
from miniserve.kernels.formats import Format
from miniserve.kernels.linear_weight import LinearWeight
from miniserve.kernels.scaled_gemm import quantise_rows
from miniserve.model.config import ModelConfig, MoE, Rope
from miniserve.model.decoder import Decoder
from miniserve.model.layers import Linear
from miniserve.model.mixture import STACKS, SparseMLP
from miniserve.runtime.graphs import DecodeGraphs
from miniserve.runtime.kv_cache import KVCache
from miniserve.runtime.model_runner import ModelRunner
from miniserve.runtime.newest import Newest

Row = dict[str, Any]
BLOCK = 64
LLAMA_8B = ModelConfig(
    architecture="llama", vocab_size=128256, hidden_size=4096, num_layers=32, num_heads=32, num_kv_heads=8,
    head_dim=128, intermediate_size=14336, max_position_embeddings=131072, rms_norm_eps=1e-5, rope=Rope(500000.0),
)  # fmt: skip
QWEN3_06B = ModelConfig(
    architecture="qwen3", vocab_size=151936, hidden_size=1024, num_layers=28, num_heads=16, num_kv_heads=8,
    head_dim=128, intermediate_size=3072, max_position_embeddings=40960, rms_norm_eps=1e-6, rope=Rope(1000000.0),
    tie_embeddings=True, qk_norm="head",
)  # fmt: skip
QWEN3_30B_A3B = ModelConfig(
    architecture="qwen3_moe", vocab_size=151936, hidden_size=2048, num_layers=48, num_heads=32, num_kv_heads=4,
    head_dim=128, intermediate_size=6144, max_position_embeddings=40960, rms_norm_eps=1e-6, rope=Rope(1000000.0),
    qk_norm="head", moe=MoE(num_experts=128, experts_per_token=8, intermediate_size=768, normalize_weights=True),
)  # fmt: skip
TOY = ModelConfig(
    architecture="qwen3", vocab_size=512, hidden_size=128, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=32,
    intermediate_size=256, max_position_embeddings=4096, rms_norm_eps=1e-6, rope=Rope(10000.0), qk_norm="head",
)  # fmt: skip
TOY_MIXTURE = replace(
    TOY, architecture="qwen3_moe",
    moe=MoE(num_experts=8, experts_per_token=2, intermediate_size=64, normalize_weights=True),
)  # fmt: skip


class Setting:
    """The device, the models' shapes, and the limits that have been measured.

    Args:
        tiny: a toy model on the CPU, to see that everything runs.
    """

    def __init__(self, tiny: bool) -> None:
        self.tiny = tiny
        self.device = torch.device("cpu" if tiny else "cuda")
        self.dtype = torch.float32 if tiny else torch.bfloat16
        self.read_bytes_per_s = self.flops_per_s = float("nan")
        self.large, self.small = (TOY, TOY) if tiny else (LLAMA_8B, QWEN3_06B)
        self.mixture = TOY_MIXTURE if tiny else QWEN3_30B_A3B
        self.ops: Any = reference
        if not tiny:
            from miniserve.kernels.triton import ops

            self.ops = ops

    def ceilings(self) -> Row:
        """Copy (bytes read and written), read alone, which shares are of, and a square product in the model's dtype."""
        size = 2**20 if self.tiny else 2**32
        source = torch.randint(0, 100, (size,), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        copy = 2 * size / seconds_per_call([lambda: target.copy_(source)], self.device)
        floats = source.view(torch.float32)
        self.read_bytes_per_s = size / seconds_per_call([floats.sum], self.device)
        edge = 128 if self.tiny else 8192
        left, right = (torch.randn(edge, edge, device=self.device, dtype=self.dtype) for _ in range(2))
        self.flops_per_s = 2 * edge**3 / seconds_per_call([lambda: left @ right], self.device)
        return {
            "copy_bytes_per_s": copy,
            "read_bytes_per_s": self.read_bytes_per_s,
            "flops_per_s": self.flops_per_s,
        }

    def decoder(self, config: ModelConfig, form: Format | None = None) -> Decoder:
        """A decoder of that shape with small random weights, those of layers and experts in rows of `form`."""
        decoder = Decoder(config, dtype=self.dtype, device=self.device, ops=self.ops)
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.normal_(0, 0.02)
            for name, module in decoder.named_modules():
                if form and isinstance(module, Linear) and not name.endswith(("unembed", "router")):
                    module.pack(LinearWeight(*quantise_rows(module.weight, form), module.bias))
                elif form and isinstance(module, SparseMLP):
                    for stack in STACKS:
                        rows = quantise_rows(getattr(module, stack).flatten(0, 1), form)
                        module.pack(stack, ExpertStack(LinearWeight(*rows), module.moe.num_experts))
        return decoder.requires_grad_(False).eval()

    def wall_seconds(self, work: Callable[[], object], repeats: int = 20) -> float:
        """Median time by the clock, the device's work included, after three warm-ups."""
        seconds = []
        for _ in range(repeats + 3):
            started = time.perf_counter()
            work()
            self.wait()
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds[3:])

    def wait(self) -> None:
        """For the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def make_engine(decoder: Decoder, *, max_batch: int, longest: int, graphs: bool, overlap: bool) -> Engine:
    """An engine with as many KV blocks as that many of the longest requests need."""
    blocks = -(-longest // BLOCK)
    scheduler = Scheduler(
        BlockPool(max_batch * blocks, BLOCK), max_num_seqs=max_batch, max_num_batched_tokens=8192,
        max_model_len=longest, prefix_caching=False,
    )  # fmt: skip
    cache = KVCache(decoder.config, max_batch * blocks, BLOCK, dtype=decoder.dtype, device=decoder.device)
    made, newest = None, Newest(max_batch, decoder.device) if overlap else None
    if graphs:
        made = DecodeGraphs(decoder, cache, max_batch=max_batch, max_blocks=blocks, block_size=BLOCK, newest=newest)
    return Engine(scheduler, ModelRunner(decoder, cache, BLOCK, made, newest))


def drain(engine: Engine, prompts: list[list[int]], outputs: list[int]) -> int:
    """Run the requests to their end; returns how many tokens came."""
    for index, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        engine.add_request(Request(f"r{index}", prompt, Limits(output)))
    made = 0
    while engine.has_work:
        made += sum(len(output.tokens) for output in engine.step())
    return made


def decode_step(batch: int, context: int, vocabulary: int) -> Step:
    """One token of each of `batch` requests that have `context` tokens."""
    blocks, parts = context // BLOCK + 1, []
    for index in range(batch):
        request = Request(f"r{index}", random_tokens(context, vocabulary, index), Limits(4))
        request.block_table.extend(range(1 + index * blocks, 1 + (index + 1) * blocks))
        parts.append(Scheduled(request, context - 1, 1))
    return Step(parts)


def random_tokens(count: int, vocabulary: int, seed: int = 0) -> list[int]:
    """That many token ids."""
    rng = random.Random(seed)
    return [rng.randrange(vocabulary) for _ in range(count)]


def free() -> None:
    """Give memory back between sections."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
