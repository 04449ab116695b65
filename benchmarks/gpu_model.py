"""Whole decode steps, prefill and a serving workload on one NVIDIA GPU, as shares of its measured limits.

    python benchmarks/gpu_model.py [--only steps workload ...] [--tiny] [--out FILE]

Weights are random: speed does not depend on their values, and correctness is what the tests are for. Limits are
measured first, in the same run. Every section is guarded: one that fails is recorded with its traceback, and the next
goes on. `--tiny` runs all of it on a CPU with a toy model, to see that it works.

Sections: ceilings, products (few rows, ours beside cuBLAS), steps (decode, by batch size and by what launches it),
fp8 (the same with FP8 weights), prefill, workload (256 requests of 100 to 1024 tokens in and out, an engine of
Qwen3-0.6B's shape beside transformers' continuous batching), generate (transformers with a static cache, batch 1).
"""

import argparse
import gc
import random
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from miniserve.bench.record import device_slug, write_record
from miniserve.bench.timing import seconds_per_call
from miniserve.core.block_pool import BlockPool
from miniserve.core.engine import Engine
from miniserve.core.executor import Scheduled, Step
from miniserve.core.request import Request
from miniserve.core.sampling_params import Limits
from miniserve.core.scheduler import Scheduler
from miniserve.kernels import reference
from miniserve.kernels.formats import E4M3
from miniserve.kernels.linear_weight import LinearWeight
from miniserve.kernels.scaled_gemm import quantise_rows
from miniserve.model.config import ModelConfig, Rope
from miniserve.model.decoder import Decoder, Linear
from miniserve.runtime.graphs import DecodeGraphs, batch_sizes
from miniserve.runtime.kv_cache import KVCache
from miniserve.runtime.model_runner import ModelRunner

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
TOY = ModelConfig(
    architecture="qwen3", vocab_size=512, hidden_size=128, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=32,
    intermediate_size=256, max_position_embeddings=4096, rms_norm_eps=1e-6, rope=Rope(10000.0), qk_norm="head",
)  # fmt: skip


class Bench:
    """The device and the limits that have been measured; each method is a section."""

    def __init__(self, tiny: bool) -> None:
        self.tiny = tiny
        self.device = torch.device("cpu" if tiny else "cuda")
        self.dtype = torch.float32 if tiny else torch.bfloat16
        self.read_bytes_per_s = self.flops_per_s = float("nan")
        self.large, self.small = (TOY, TOY) if tiny else (LLAMA_8B, QWEN3_06B)

    def ops(self, name: str) -> Any:
        """A backend's operators; on a CPU plain torch's."""
        if name == "triton" and not self.tiny:
            from miniserve.kernels.triton import ops

            return ops
        return reference

    def ceilings(self) -> dict[str, float]:
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

    def products(self) -> list[dict[str, Any]]:
        """W of each of the large model's layers times 1 to 64 rows: cuBLAS, and ours in a few tilings."""
        config, found = self.large, []
        hidden, inner = config.hidden_size, config.intermediate_size
        heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        shapes = [(heads, hidden), (hidden, hidden), (2 * inner, hidden), (hidden, inner), (config.vocab_size, hidden)]
        for (outputs, depth), rows in ((shape, rows) for shape in shapes for rows in (1, 8, 16, 64)):
            for form in ("bfloat16", "e4m3"):
                found.append(self._product(outputs, depth, rows, form))
        return found

    def _product(self, outputs: int, depth: int, rows: int, form: str) -> dict[str, Any]:
        x = torch.randn(rows, depth, device=self.device, dtype=self.dtype)
        weight = torch.randn(outputs, depth, device=self.device, dtype=self.dtype)
        bytes_each = outputs * depth * (1 if form == "e4m3" else self.dtype.itemsize)
        copies = 1 if self.tiny else max(2, int(2e8 // bytes_each))
        row: dict[str, Any] = {"n": outputs, "k": depth, "rows": rows, "form": form}
        scales = None
        if form == "e4m3":
            quantised = quantise_rows(weight, E4M3)
            weights, scales = [quantised.data.clone() for _ in range(copies)], quantised.scales
            if rows > 16 or self.tiny:
                ops, matrices = self.ops("triton"), [LinearWeight(each, scales) for each in weights]
                seconds = seconds_per_call([lambda w=w: ops.linear(x, w) for w in matrices], self.device, repeats=7)
                return row | {"ours_bytes_per_s": bytes_each / seconds}
        else:
            weights = [weight.clone() for _ in range(copies)]
            library = [lambda w=w: torch.nn.functional.linear(x, w) for w in weights]
            row["cublas_bytes_per_s"] = bytes_each / seconds_per_call(library, self.device, repeats=7)
        if rows <= 16 and not self.tiny:
            from miniserve.kernels.triton.configs import FewRowsConfig
            from miniserve.kernels.triton.few_rows import few_rows_linear

            tried = {}
            single = [
                (1, 2048, 4, 3),
                (2, 1024, 4, 2),
                (1, 4096, 4, 2),
                (2, 2048, 4, 2),
                (2, 4096, 8, 2),
                (1, 4096, 8, 2),
            ]
            several = [
                (16, 256, 4, 4),
                (32, 128, 4, 5),
                (32, 256, 4, 4),
                (64, 128, 4, 4),
                (64, 256, 8, 3),
                (128, 128, 8, 3),
            ]
            configs = [FewRowsConfig(*tile) for tile in (single if rows == 1 else several)]
            for config in configs:
                try:
                    calls = [lambda w=w, c=config: few_rows_linear(x, w, scales, None, c) for w in weights]
                    tried[str(config)] = bytes_each / seconds_per_call(calls, self.device, repeats=5)
                except Exception as error:  # a tiling that does not fit is a result too
                    tried[str(config)] = repr(error)[:80]
            numbers = {name: rate for name, rate in tried.items() if isinstance(rate, float)}
            best = max(numbers, key=numbers.__getitem__, default=None)
            row |= {"tried": tried, "best": best, "ours_bytes_per_s": numbers.get(best or "", 0.0)}
        return row

    def steps(self, quantization: str = "none") -> list[dict[str, Any]]:
        """Decode steps of the large model with 1024 tokens of context: eager torch, eager Triton, Triton graphs."""
        context, found = (40 if self.tiny else 1024), []
        batches = (1, 2) if self.tiny else (1, 8, 64, 256)
        decoder = random_decoder(self.large, self.dtype, self.device, self.ops("triton"), quantization)
        with_cache = KVCache(
            self.large, 2 + max(batches) * (context // BLOCK + 2), BLOCK, dtype=self.dtype, device=self.device
        )
        for each in with_cache.keys + with_cache.values:
            each.normal_()
        for batch in batches:
            step = decode_step(batch, context, self.large.vocab_size)
            kv = batch * context * self.large.kv_bytes_per_token(self.dtype.itemsize)
            moved = decoder.weight_bytes + kv
            row: dict[str, Any] = {"batch": batch, "context": context, "weights": quantization, "bytes": moved}
            ways: dict[str, ModelRunner] = {"triton eager": ModelRunner(decoder, with_cache, BLOCK)}
            if not self.tiny:
                graphs = DecodeGraphs(
                    decoder, with_cache, max_batch=batch, max_blocks=context // BLOCK + 2, block_size=BLOCK
                )
                ways["triton graphs"] = ModelRunner(decoder, with_cache, BLOCK, graphs)
                graphs(step)  # so that the graph's inputs are this step's
                captured = graphs._graphs[batch].graph
                row["graph_s"] = seconds_per_call([captured.replay], self.device, graph=False)
                row["mbu"] = moved / row["graph_s"] / self.read_bytes_per_s
            for name, runner in ways.items():
                row[f"{name}: step_s"] = wall_seconds(lambda r=runner, s=step: r.execute(s), self.device)
            if quantization == "none" and batch <= 8:
                decoder_ops = decoder.ops
                set_ops(decoder, reference)
                plain = ModelRunner(decoder, with_cache, BLOCK)
                row["torch eager: step_s"] = wall_seconds(lambda r=plain, s=step: r.execute(s), self.device, 3)
                set_ops(decoder, decoder_ops)
            best = min(value for key, value in row.items() if key.endswith("step_s"))
            row |= {"tokens_per_s": batch / best, "mbu_wall": moved / best / self.read_bytes_per_s}
            found.append(row)
            print(row, flush=True)
        return found

    def fp8(self) -> list[dict[str, Any]]:
        """`steps` with FP8 weights."""
        return self.steps("fp8")

    def prefill(self) -> list[dict[str, Any]]:
        """One prompt of the large model, in one step: its share of the measured product rate."""
        found = []
        decoder = random_decoder(self.large, self.dtype, self.device, self.ops("triton"))
        for length in (64,) if self.tiny else (512, 2048, 8192):
            cache = KVCache(self.large, length // BLOCK + 2, BLOCK, dtype=self.dtype, device=self.device)
            runner = ModelRunner(decoder, cache, BLOCK)
            request = Request("r", random_tokens(length, self.large.vocab_size), Limits(4))
            request.block_table.extend(range(1, length // BLOCK + 2))
            step = Step([Scheduled(request, 0, length)])
            seconds = wall_seconds(lambda r=runner, s=step: r.execute(s), self.device, 7)
            config = self.large
            layers = config.num_active_parameters() - 2 * config.vocab_size * config.hidden_size
            attention = 2 * config.num_layers * config.num_heads * config.head_dim * length * (length + 1)
            flops = 2 * layers * length + 2 * config.vocab_size * config.hidden_size + attention
            rate = flops / seconds
            found.append({"tokens": length, "step_s": seconds, "flops_per_s": rate, "mfu": rate / self.flops_per_s})
            print(found[-1], flush=True)
        return found

    def workload(self) -> dict[str, Any]:
        """Requests of 100 to 1024 tokens in and out, drawn with seed 0, as nano-vllm's benchmark has them."""
        rng = random.Random(0)
        count, low, high = (4, 5, 12) if self.tiny else (256, 100, 1024)
        lengths = [(rng.randint(low, high), rng.randint(low, high)) for _ in range(count)]
        prompts = [[rng.randrange(self.small.vocab_size) for _ in range(prompt)] for prompt, _ in lengths]
        outputs = [output for _, output in lengths]
        total = sum(outputs)
        found: dict[str, Any] = {"requests": count, "prompt_tokens": sum(map(len, prompts)), "output_tokens": total}
        decoder = random_decoder(self.small, self.dtype, self.device, self.ops("triton"))
        for name, graphed in (("ours", True), ("ours, eager", False)):
            if graphed and self.tiny:
                continue
            engine = make_engine(decoder, max_batch=count, longest=2 * high, graphs=graphed)
            drain(engine, prompts[:2], [4, 4])  # compiles what is left to compile
            steps, engine.metrics.seconds = engine.metrics.num_steps, {}
            started = time.perf_counter()
            made = drain(engine, prompts, outputs)
            seconds = time.perf_counter() - started
            assert made == total, f"{made} tokens came, {total} were asked for"
            found[name] = {
                "seconds": seconds, "output_tokens_per_s": total / seconds, "steps": engine.metrics.num_steps - steps,
                "split_s": dict(engine.metrics.seconds), "schedule_s": engine.metrics.schedule_s,
            }  # fmt: skip
            print(name, found[name], flush=True)
            del engine
            free()
        del decoder
        free()
        found["transformers continuous"] = self._transformers_continuous(prompts, outputs)
        if "ours" in found and "output_tokens_per_s" in found["transformers continuous"]:
            theirs = found["transformers continuous"]["output_tokens_per_s"]
            found["ratio"] = found["ours"]["output_tokens_per_s"] / theirs
        return found

    def _transformers_continuous(self, prompts: list[list[int]], outputs: list[int]) -> dict[str, Any]:
        """All requests at once; after a time limit, what has come until then counts."""
        from transformers import ContinuousBatchingConfig, GenerationConfig

        limit_s = 20 if self.tiny else 75
        model = hf_model(self.small, self.dtype, self.device)
        manager = model.init_continuous_batching(
            generation_config=GenerationConfig(
                max_new_tokens=max(outputs), do_sample=False, eos_token_id=None, pad_token_id=0
            ),
            continuous_batching_config=ContinuousBatchingConfig(allow_block_sharing=False),
        )
        manager.start()
        manager.add_request(prompts[0], max_new_tokens=4, eos_token_id=-1)
        if manager.get_result(timeout=60) is None:
            raise RuntimeError(f"no answer: {manager.background_thread_status.fatal_error}")
        started = time.perf_counter()
        for prompt, output in zip(prompts, outputs, strict=True):
            manager.add_request(prompt, max_new_tokens=output, eos_token_id=-1)
        finished, tokens = 0, 0
        while finished < len(prompts) and time.perf_counter() - started < limit_s and manager.is_running():
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                finished, tokens = finished + 1, tokens + len(result.generated_tokens)
        seconds = time.perf_counter() - started
        manager.stop(block=False)
        # Unfinished requests' tokens are not seen. Counting all of them as done favours the peer, and is said.
        complete = finished == len(prompts)
        counted = tokens if complete else sum(outputs)
        return {
            "seconds": seconds, "finished": finished, "complete": complete, "tokens_of_finished": tokens,
            "output_tokens_per_s": counted / seconds, "attention": model.config._attn_implementation,
        }  # fmt: skip

    def generate(self) -> dict[str, Any]:
        """transformers' `generate` with a static cache, not compiled, batch 1, beside our engine: the large model."""
        tokens, prompt = (8, 10) if self.tiny else (128, 128)
        ids = random_tokens(prompt, self.large.vocab_size)
        decoder = random_decoder(self.large, self.dtype, self.device, self.ops("triton"))
        engine = make_engine(decoder, max_batch=1, longest=1024, graphs=not self.tiny)
        drain(engine, [ids], [4])
        started = time.perf_counter()
        drain(engine, [ids[::-1]], [tokens])
        found: dict[str, Any] = {"tokens": tokens, "ours_s": time.perf_counter() - started}
        del engine, decoder
        free()
        model = hf_model(self.large, self.dtype, self.device)
        batch = torch.tensor([ids], device=self.device)
        options: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "disable_compile": True}
        for cache in ("dynamic", "static"):
            model.generate(batch, max_new_tokens=4, cache_implementation=cache, **options)
            self._wait()
            started = time.perf_counter()
            model.generate(batch, max_new_tokens=tokens, cache_implementation=cache, **options)
            self._wait()
            found[f"transformers {cache}_s"] = time.perf_counter() - started
        return found

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def random_decoder(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, ops: Any, quantization: str = "none"
) -> Decoder:
    """A decoder of that shape with small random weights."""
    decoder = Decoder(config, dtype=dtype, device=device, ops=ops)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(0, 0.02)
        if quantization == "fp8":
            for name, module in decoder.named_modules():
                if isinstance(module, Linear) and name != "unembed":
                    data, scales = quantise_rows(module.weight, E4M3)
                    module.pack(LinearWeight(data, scales, module.bias))
    return decoder.requires_grad_(False).eval()


def set_ops(decoder: Decoder, ops: Any) -> None:
    """Let the decoder's parts compute with other operators."""
    for module in decoder.modules():
        if hasattr(module, "ops"):
            module.ops = ops


def hf_model(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Any:
    """transformers' model of that shape, random weights."""
    import transformers

    kind = transformers.Qwen3Config if config.qk_norm else transformers.LlamaConfig
    theirs = kind(
        vocab_size=config.vocab_size, hidden_size=config.hidden_size, num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads, num_key_value_heads=config.num_kv_heads, head_dim=config.head_dim,
        intermediate_size=config.intermediate_size, max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=config.tie_embeddings, dtype=dtype,
    )  # fmt: skip
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(theirs, dtype=dtype)
    return model.eval()


def make_engine(decoder: Decoder, *, max_batch: int, longest: int, graphs: bool) -> Engine:
    """An engine with as many KV blocks as that many of the longest requests need."""
    blocks = -(-longest // BLOCK)
    scheduler = Scheduler(
        BlockPool(max_batch * blocks, BLOCK), max_num_seqs=max_batch, max_num_batched_tokens=8192,
        max_model_len=longest, prefix_caching=False,
    )  # fmt: skip
    cache = KVCache(decoder.config, max_batch * blocks, BLOCK, dtype=decoder.dtype, device=decoder.device)
    made = None
    if graphs:
        made = DecodeGraphs(decoder, cache, max_batch=max_batch, max_blocks=blocks, block_size=BLOCK)
    return Engine(scheduler, ModelRunner(decoder, cache, BLOCK, made))


def drain(engine: Engine, prompts: list[list[int]], outputs: list[int]) -> int:
    """Run the requests to their end; returns how many tokens came."""
    for index, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        engine.add_request(Request(f"r{index}", prompt, Limits(output)))
    made = 0
    while engine.has_work:
        made += sum(output.token is not None for output in engine.step())
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


def wall_seconds(work: Callable[[], object], device: torch.device, repeats: int = 20) -> float:
    """Median time by the clock, the device's work included, after three warm-ups."""
    seconds = []
    for _ in range(repeats + 3):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[3:])


def free() -> None:
    """Give memory back between sections."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


SECTIONS = ("ceilings", "products", "steps", "fp8", "prefill", "workload", "generate")


def guarded(bench: Bench, names: list[str]) -> Iterator[tuple[str, Any]]:
    """Each section's result, or its traceback."""
    for name in names:
        started = time.perf_counter()
        try:
            with torch.inference_mode():
                found = getattr(bench, name)()
        except Exception:
            found = {"failed": traceback.format_exc()}
            print(found["failed"], file=sys.stderr, flush=True)
        print(f"{name}: {time.perf_counter() - started:.1f} s", flush=True)
        free()
        yield name, found


def main() -> None:
    """Run the sections and write what came of them, after each of them anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    bench = Bench(arguments.tiny)
    out = arguments.out or Path("results") / device_slug() / "model.json"
    names = ["ceilings", *(name for name in arguments.only if name != "ceilings")]
    found: dict[str, Any] = {"batch_sizes": batch_sizes(256)}
    for name, result in guarded(bench, names):
        found[name] = result
        write_record(out, found, "python " + " ".join(sys.argv))


if __name__ == "__main__":
    main()
