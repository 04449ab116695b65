"""A serving workload and one long answer: our engine beside transformers, same shapes, random weights."""

import random
import time
from typing import Any

import torch

from miniserve.model.config import ModelConfig
from whole_model.setting import Row, Setting, drain, free, make_engine, random_tokens

LIMIT_S = 25.0  # for the peer's run of the workload


def workload(setting: Setting) -> Row:
    """Requests of 100 to 1024 tokens in and out, drawn with seed 0, as nano-vllm's benchmark has them."""
    rng = random.Random(0)
    count, low, high = (4, 5, 12) if setting.tiny else (256, 100, 1024)
    lengths = [(rng.randint(low, high), rng.randint(low, high)) for _ in range(count)]
    prompts = [[rng.randrange(setting.small.vocab_size) for _ in range(prompt)] for prompt, _ in lengths]
    outputs = [output for _, output in lengths]
    total = sum(outputs)
    found: Row = {"requests": count, "prompt_tokens": sum(map(len, prompts)), "output_tokens": total}
    decoder = setting.decoder(setting.small)
    ways = (("ours", True, True), ("ours, no overlap", True, False), ("ours, eager", False, False))
    for name, graphed, overlapped in ways:
        if graphed and setting.tiny:
            continue
        engine = make_engine(decoder, max_batch=count, longest=2 * high, graphs=graphed, overlap=overlapped)
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
    found["transformers continuous"] = transformers_continuous(setting, prompts, outputs)
    if "ours" in found and "output_tokens_per_s" in found["transformers continuous"]:
        theirs = found["transformers continuous"]["output_tokens_per_s"]
        found["ratio"] = found["ours"]["output_tokens_per_s"] / theirs
    return found


def transformers_continuous(setting: Setting, prompts: list[list[int]], outputs: list[int]) -> Row:
    """All requests at once; after a time limit, what has come until then counts."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model = hf_model(setting, setting.small)
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
    while finished < len(prompts) and time.perf_counter() - started < LIMIT_S and manager.is_running():
        result = manager.get_result(timeout=1)
        if result is not None and result.is_finished():
            finished, tokens = finished + 1, tokens + len(result.generated_tokens)
    seconds = time.perf_counter() - started
    manager.stop(block=True, timeout=10)
    # Unfinished requests' tokens are not seen. Counting all of them as done favours the peer, and is said.
    complete = finished == len(prompts)
    counted = tokens if complete else sum(outputs)
    return {
        "seconds": seconds, "finished": finished, "complete": complete, "tokens_of_finished": tokens,
        "output_tokens_per_s": counted / seconds, "attention": model.config._attn_implementation,
    }  # fmt: skip


def generate(setting: Setting) -> Row:
    """transformers' `generate` with a static cache, not compiled, batch 1, beside our engine: the large model."""
    tokens, prompt = (8, 10) if setting.tiny else (128, 128)
    ids = random_tokens(prompt, setting.large.vocab_size)
    decoder = setting.decoder(setting.large)
    engine = make_engine(decoder, max_batch=1, longest=1024, graphs=not setting.tiny, overlap=not setting.tiny)
    drain(engine, [ids], [4])
    started = time.perf_counter()
    drain(engine, [ids[::-1]], [tokens])
    found: Row = {"tokens": tokens, "ours_s": time.perf_counter() - started}
    del engine, decoder
    free()
    model = hf_model(setting, setting.large)
    batch = torch.tensor([ids], device=setting.device)
    options: Row = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "disable_compile": True}
    for cache in ("dynamic", "static"):
        model.generate(batch, max_new_tokens=4, cache_implementation=cache, **options)
        setting.wait()
        started = time.perf_counter()
        model.generate(batch, max_new_tokens=tokens, cache_implementation=cache, **options)
        setting.wait()
        found[f"transformers {cache}_s"] = time.perf_counter() - started
    return found


def hf_model(setting: Setting, config: ModelConfig) -> Any:
    """transformers' model of that shape, random weights."""
    import transformers

    kind = transformers.Qwen3Config if config.qk_norm else transformers.LlamaConfig
    theirs = kind(
        vocab_size=config.vocab_size, hidden_size=config.hidden_size, num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads, num_key_value_heads=config.num_kv_heads, head_dim=config.head_dim,
        intermediate_size=config.intermediate_size, max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=config.tie_embeddings, dtype=setting.dtype,
    )  # fmt: skip
    with setting.device:
        model = transformers.AutoModelForCausalLM.from_config(theirs, dtype=setting.dtype)
    return model.eval()
