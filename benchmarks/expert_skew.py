"""What skewed experts cost, as NVIDIA's AIConfigurator timed them on an H100: `results/expert_skew.json`.

    python benchmarks/expert_skew.py --data DIR

DIR is as `fit_kernel_timings.py` takes it; needs pyarrow. Two models' experts on one GPU, and on ranks of which the
busiest is timed: milliseconds of their products under an even load, and under power laws as multiples of that. Tokens
that travel are not in it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from pyarrow import parquet

from miniserve.bench.record import record

MODELS = {
    "deepseek-v3": {"moe_dtype": "fp8_block", "hidden_size": 7168, "inter_size": 2048, "num_experts": 256},
    "qwen3-30b-a3b": {"moe_dtype": "bfloat16", "hidden_size": 2048, "inter_size": 768, "num_experts": 128},
}
ALL = {"topk": 8, "moe_tp_size": 1, "kernel_source": "moe_torch_flow_cutlass"}  # not the kernels for few tokens alone
RANKS, TOKENS, EXPONENTS = (1, 8, 32), (1, 16, 128, 1024, 8192), ("1.01", "1.2")
SOURCE = "https://github.com/ai-dynamo/aiconfigurator"

Timings = list[dict[str, Any]]


def row(timings: Timings, ranks: int, tokens: int) -> dict[str, Any]:
    """Of one model, so many ranks, so many tokens of all of them."""
    here = {
        each["distribution"]: each["latency"]
        for each in timings
        if (each["moe_ep_size"], each["num_tokens"]) == (ranks, tokens)
    }
    even = here["balanced"]
    skewed = {exponent: round(here[f"power_law_{exponent}"] / even, 3) for exponent in EXPONENTS}
    return {"ranks": ranks, "tokens": tokens, "even_ms": round(even, 4), "times_even": skewed}


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    (file,) = (parser.parse_args().data / "h100_sxm").glob("moe_perf.*.parquet")
    timings = parquet.read_table(file).to_pylist()
    data = {}
    for model, sizes in MODELS.items():
        chosen = [each for each in timings if all(each[name] == is_ for name, is_ in (ALL | sizes).items())]
        data[model] = [row(chosen, ranks, tokens) for ranks in RANKS for tokens in TOKENS]
    made = record(data, "python benchmarks/expert_skew.py --data DIR")
    made |= {"label": "claimed", "device": timings[0]["device"], "source": SOURCE}
    made["note"] = f"TensorRT-LLM {timings[0]['version']}, timed by NVIDIA's AIConfigurator, Apache-2.0"
    Path("results/expert_skew.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
