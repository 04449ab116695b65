"""Mixtures of experts on a CPU: miniserve beside transformers, decoding the same checkpoint, at batch 1 and 32.

    python benchmarks/moe_cpu.py
    python benchmarks/moe_cpu.py --shape small --rounds 2
    python benchmarks/moe_cpu.py --checkpoint tiny-moe

Two random checkpoints in the shape of Qwen3-MoE, or one that is there already. Both sides get the same token ids and
give the same number of tokens, greedily, in one process, on the same threads, in turn. transformers has its best: at
each batch every dtype is tried with every implementation of experts, then the fastest of these with other attention and
with a static cache, and the fastest of all competes. A time is that of a whole call, prompts of 16 tokens included on
both sides. `share` is how much of this machine's read bandwidth, measured on as many bytes as a step must read, ours
reads at.
"""

import argparse
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from miniserve import LLM, SamplingParams
from miniserve.bench.ceilings import read_bytes_per_s
from miniserve.bench.record import write_record
from miniserve.bench.work import precision_of, step_work
from miniserve.core.step_record import PartRecord
from miniserve.model.sources.resolve import resolve

RESULT = Path(__file__).parents[1] / "results" / "moe_cpu.json"
BATCHES, PROMPT, OUTPUT = (1, 32), 16, 32
SHAPES = {
    "small": dict(
        hidden_size=256, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4, head_dim=32,
        num_experts=8, num_experts_per_tok=2, moe_intermediate_size=128, vocab_size=2048,
    ),
    "larger": dict(
        hidden_size=1024, num_hidden_layers=6, num_attention_heads=16, num_key_value_heads=4, head_dim=64,
        num_experts=32, num_experts_per_tok=4, moe_intermediate_size=256, vocab_size=8192,
    ),
}  # fmt: skip
OURS = ("bfloat16", "float32")
Run = Callable[[], object]


def make_checkpoint(shape: dict[str, int], directory: Path) -> None:
    """A random model with a tokenizer of bytes, as a hub would have them."""
    torch.manual_seed(0)
    config = hf.Qwen3MoeConfig(**shape, norm_topk_prob=True, max_position_embeddings=512, eos_token_id=0)
    hf.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = alphabet + [f"unused{number}" for number in range(shape["vocab_size"] - len(alphabet))]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text("{}")


def prompts_of(batch: int, vocab_size: int) -> list[list[int]]:
    """Token ids, the same for both sides."""
    drawn = torch.randint(1, vocab_size, (batch, PROMPT), generator=torch.Generator().manual_seed(batch))
    return drawn.tolist()


def ours(llm: LLM, prompts: list[list[int]]) -> Run:
    """A call that decodes."""
    params = SamplingParams(max_tokens=OUTPUT, temperature=0.0, ignore_eos=True)
    return lambda: llm.generate(prompts, params)


def generate(model: Any, ids: torch.Tensor, attention: str, cache: str | None, tokens: int = OUTPUT) -> Run:
    """transformers' own loop."""

    @torch.inference_mode()
    def run() -> object:
        model.set_attn_implementation(attention)
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            cache_implementation=cache,
            disable_compile=True,
        )

    return run


def seconds(run: Run) -> float:
    """Of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def best_of_theirs(directory: str, prompts: list[list[int]]) -> tuple[str, Run, dict[str, float | str]]:
    """The fastest setting, and how many tokens a second each gave; a setting that fails says why."""
    ids, tried = torch.tensor(prompts), dict[str, float | str]()
    best: tuple[float, str, Run, Any] = (math.inf, "", lambda: None, None)

    def attempt(model: Any, loaded: str, attention: str, cache: str | None) -> None:
        nonlocal best
        name, run = (
            f"{loaded}, attention {attention}, cache {cache or 'dynamic'}",
            generate(model, ids, attention, cache),
        )
        try:
            generate(model, ids, attention, cache, tokens=2)()
            taken = seconds(run)
        except Exception as error:  # whatever a setting is refused with
            tried[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            return
        tried[name] = len(prompts) * OUTPUT / taken
        best = min(best, (taken, name, run, (model, loaded)), key=lambda each: each[0])

    for dtype, experts in itertools.product(("float32", "bfloat16"), ("eager", "batched_mm", "grouped_mm")):
        loaded: Any = hf.AutoModelForCausalLM.from_pretrained(
            directory, dtype=getattr(torch, dtype), experts_implementation=experts
        ).eval()
        attempt(loaded, f"{dtype}, experts {experts}", "sdpa", None)
    assert best[3] is not None, tried
    for attention, cache in (("eager", None), ("sdpa", "static"), ("eager", "static")):
        attempt(*best[3], attention, cache)
    return best[1], best[2], tried


def compare(directory: str, batch: int, rounds: int) -> dict[str, Any]:
    """Both sides in turn."""
    vocab_size = int(json.loads((Path(directory) / "config.json").read_text())["vocab_size"])
    prompts, tokens = prompts_of(batch, vocab_size), batch * OUTPUT
    name, run, tried = best_of_theirs(directory, prompts)
    engines = {
        kind: LLM(directory, device="cpu", dtype=kind, max_num_seqs=batch, enable_prefix_caching=False) for kind in OURS
    }
    runs = {"transformers": run} | {kind: ours(llm, prompts) for kind, llm in engines.items()}
    for each in list(runs.values())[1:]:
        each()
    taken: dict[str, list[float]] = {who: [] for who in runs}
    for _ in range(rounds):
        for who, each in runs.items():
            taken[who].append(seconds(each))
    median = {who: statistics.median(each) for who, each in taken.items()}
    found: dict[str, Any] = {
        "batch": batch,
        "transformers_best": name,
        "transformers_tried_tokens_per_s": tried,
        "transformers_tokens_per_s": tokens / median["transformers"],
    }
    for kind, llm in engines.items():
        decoder = llm.model.decoder
        parts = [PartRecord(str(row), PROMPT + OUTPUT // 2, 1, True) for row in range(batch)]
        work = step_work(decoder.config, parts, precision_of(decoder))
        bandwidth = read_bytes_per_s(decoder.device, max(1 << 20, int(work.bytes)))
        found[f"ours_{kind}"] = {
            "tokens_per_s": tokens / median[kind],
            "ratio": median["transformers"] / median[kind],
            "step_bytes": work.bytes,
            "read_bytes_per_s": bandwidth,
            "share": work.bytes * OUTPUT / median[kind] / bandwidth,
        }
        llm.close()
    return found


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[*SHAPES], action="append")
    parser.add_argument("--checkpoint", action="append", default=[], help="of a mixture: a name or a directory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--result", type=Path, default=RESULT)
    args = parser.parse_args()
    hf.logging.set_verbosity_error()
    data: dict[str, Any] = {"prompt_tokens": PROMPT, "output_tokens": OUTPUT, "threads": torch.get_num_threads()}
    shapes = args.shape or ([] if args.checkpoint else [*SHAPES])
    with tempfile.TemporaryDirectory() as scratch:
        places = {name: str(resolve(name).path) for name in args.checkpoint}
        for name in shapes:
            places[name] = str(Path(scratch) / name)
            make_checkpoint(SHAPES[name], Path(places[name]))
        for name, directory in places.items():
            data[name] = {"shape": SHAPES.get(name), "batches": []}
            for batch in BATCHES:
                row = compare(directory, batch, args.rounds)
                data[name]["batches"].append(row)
                print(json.dumps({"model": name} | {k: v for k, v in row.items() if "tried" not in k}), flush=True)
                # After each, because all of it takes minutes.
                write_record(args.result, data, " ".join(["python benchmarks/moe_cpu.py", *sys.argv[1:]]), kind="cpu")


if __name__ == "__main__":
    main()
