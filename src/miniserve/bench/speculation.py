"""`bench speculation`: the same prompts with and without guesses, on text that quotes its prompt and on new text.

Both engines run in turn in one process, greedily, and must say the same. What decides is how often a guess is right,
and what a step of several tokens of a request costs beside a step of one: both are reported.
"""

import statistics
import time
from collections.abc import Mapping
from typing import Any

from miniserve.core.sampling_params import SamplingParams
from miniserve.core.step_record import StepRecord
from miniserve.llm import LLM
from miniserve.model.load import LoadedModel

# Functions to be copied with a change: an edit says most of its prompt again.
FUNCTIONS = (
    "def area(width, height):\n    size = width * height\n    print('the area is', size)\n    return size\n",
    "def mean(numbers):\n    total = 0\n    for each in numbers:\n        total += each\n"
    "    return total / len(numbers)\n",
    "def count(words):\n    found = {}\n    for word in words:\n        found[word] = found.get(word, 0) + 1\n"
    "    return found\n",
    "def reverse(items):\n    result = []\n    for item in items:\n        result.insert(0, item)\n    return result\n",
    "def largest(values):\n    best = values[0]\n    for value in values:\n        if value > best:\n"
    "            best = value\n    return best\n",
    "def greet(name, hour):\n    if hour < 12:\n        return 'Good morning, ' + name\n"
    "    return 'Good evening, ' + name\n",
    "def evens(limit):\n    result = []\n    for number in range(limit):\n        if number % 2 == 0:\n"
    "            result.append(number)\n    return result\n",
    "def read(path):\n    lines = []\n    with open(path) as file:\n        for line in file:\n"
    "            lines.append(line.strip())\n    return lines\n",
)
QUESTIONS = (
    "Write a short story about a lighthouse keeper.",
    "Why is the sky blue?",
    "Describe a market in the early morning.",
    "What should I take along on a hike in autumn?",
    "Tell me about the history of the bicycle.",
    "How do bees find their way?",
    "Write a letter to a friend who moves to the sea.",
    "What makes a good teacher?",
)
TEXTS = {
    "quoting": tuple(f"Copy this function and add a docstring to it.\n\n{function}" for function in FUNCTIONS),
    "new": QUESTIONS,
}


def bench_speculation(model: LoadedModel, speculation: str = "ngram") -> dict[str, Any]:
    """Both kinds of text, as a user's messages, at batch sizes 1 and 8."""
    prompts = {
        kind: [model.tokenizer.encode_chat([{"role": "user", "content": text}]) for text in texts]
        for kind, texts in TEXTS.items()
    }
    return compare(model, speculation, prompts, batches=(1, 8), max_tokens=64, repeats=3)


def compare(
    model: LoadedModel,
    speculation: str,
    prompts: Mapping[str, list[list[int]]],
    *,
    batches: tuple[int, ...],
    max_tokens: int,
    repeats: int,
) -> dict[str, Any]:
    """Run each kind of prompts at each batch size, `repeats` times each way in turn; the median run counts.

    All prompts of a kind run at each size, so many at a time: the tokens are the same, and only the batch differs.
    """
    found: dict[str, Any] = {"speculation": speculation, "max_tokens": max_tokens, "repeats": repeats}
    options: dict[str, Any] = {"max_num_seqs": max(batches), "enable_prefix_caching": False}
    options["max_model_len"] = max_tokens + max(len(prompt) for each in prompts.values() for prompt in each)
    with LLM(model, **options) as plain, LLM(model, **options, speculation=speculation) as guessing:
        for llm in (plain, guessing):
            llm.generate([[1, 2, 3]], SamplingParams(max_tokens=4, ignore_eos=True))  # warm up
        for kind, theirs in prompts.items():
            for batch in batches:
                runs = [[_run(llm, theirs, batch, max_tokens) for llm in (plain, guessing)] for _ in range(repeats)]
                ways = [sorted(way, key=lambda run: run["wall_s"])[repeats // 2] for way in zip(*runs, strict=True)]
                without, with_guesses = ways
                same = without.pop("tokens") == with_guesses.pop("tokens")
                speedup = without["wall_s"] / with_guesses["wall_s"]
                found[f"{kind}_batch_{batch}"] = {
                    "without": without, "with": with_guesses, "same_tokens": same, "speedup": speedup,
                }  # fmt: skip
    return found


def _run(llm: LLM, prompts: list[list[int]], batch: int, max_tokens: int) -> dict[str, Any]:
    """All prompts, `batch` at a time."""
    records: list[StepRecord] = []
    metrics = llm.engine.metrics
    drafted, accepted, samplings = list(metrics.drafted), list(metrics.accepted), metrics.num_samplings
    llm.engine.on_step = records.append
    started, tokens = time.perf_counter(), []
    for at in range(0, len(prompts), batch):
        outputs = llm.generate(prompts[at : at + batch], SamplingParams(max_tokens=max_tokens))
        tokens += [output.token_ids for output in outputs]
    wall_s = time.perf_counter() - started
    llm.engine.on_step = None
    count = sum(map(len, tokens))
    run: dict[str, Any] = {
        "tokens": tokens,
        "wall_s": wall_s,
        "output_tokens": count,
        "output_tokens_per_s": count / wall_s,
        "num_steps": len(records),
        "tokens_per_step": count / (metrics.num_samplings - samplings),
        "execute_s_by_tokens": _by_tokens(records),
    }
    if llm.settings.speculation:
        drafted, accepted = _gained(metrics.drafted, drafted), _gained(metrics.accepted, accepted)
        run |= {"drafted": drafted, "accepted": accepted, "acceptance": sum(accepted) / max(sum(drafted), 1)}
    return run


def _gained(now: list[int], old: list[int]) -> list[int]:
    return [value - (old[at] if at < len(old) else 0) for at, value in enumerate(now)]


def _by_tokens(records: list[StepRecord]) -> dict[str, float]:
    """Median seconds of decode steps, by how many tokens they compute; of numbers that came up five times at least."""
    seconds: dict[int, list[float]] = {}
    for record in records:
        if all(part.num_tokens == 1 + part.num_drafted for part in record.parts):
            seconds.setdefault(record.num_tokens, []).append(record.execute_s)
    return {str(tokens): statistics.median(each) for tokens, each in sorted(seconds.items()) if len(each) >= 5}
