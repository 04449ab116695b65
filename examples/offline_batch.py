"""Offline batch: the lines of a file as prompts, all in one engine, and a line of JSON for each answer, in order.

    python examples/offline_batch.py prompts.txt > answers.jsonl
    python examples/offline_batch.py prompts.txt --model tiny-moe      # inside the package: no download

Prompts that begin alike share their KV blocks; the last line, on stderr, says how many tokens that saved.
"""

import argparse
import json
import sys
from pathlib import Path

from miniserve import LLM, SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--max-tokens", type=int, default=64)
    asked = parser.parse_args()
    prompts = [line for line in asked.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    params = SamplingParams(max_tokens=asked.max_tokens, temperature=0.8, top_p=0.95, seed=1)
    with LLM(asked.model) as llm:
        outputs = llm.generate(prompts, params, progress=sys.stderr.isatty())
    for output in outputs:
        print(json.dumps({"prompt": output.prompt, "text": output.text, "finish_reason": output.finish_reason}))
    total = {name: sum(output.usage[name] for output in outputs) for name in outputs[0].usage} if outputs else {}
    print(total, file=sys.stderr)


if __name__ == "__main__":
    main()
