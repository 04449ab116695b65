"""Attention and feed-forward parts in two processes: what turns hide, and what is left to wait for.

One process with one thread computes both parts one after the other. Two processes with a thread each, one of them with
the feed-forward parts, are measured with one batch, which is nowhere twice, and with two and three that take turns. The
engines are asked in turn, round by round, for the same decode steps. From what each rank records of its turns: the
seconds of a step that each side computes, and that attention's side waits; and how far a step is from the longer side's
seconds, which is what turns cannot hide (the bubble). The cost model's formula (`simulate.afd`), fed with the measured
seconds of both sides, says what a step should take.

    python benchmarks/afd.py [--models smollm2 tiny-moe] [--out results/afd.json]

Some minutes on two cores. A last step of each way is kept whole, for a drawing.
"""

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from miniserve.bench.record import write_record
from miniserve.core.sampling_params import SamplingParams
from miniserve.fleet.afd.spans import Span, read_spans
from miniserve.llm import LLM

STREAMS, PROMPT, NEW, ROUNDS = 16, 64, 12, 5
WAYS: dict[str, dict[str, Any]] = {
    "one process": {},
    "apart, 1 batch": {"afd": "1x1", "afd_batches": 1},
    "apart, 2 batches": {"afd": "1x1", "afd_batches": 2},
    "apart, 3 batches": {"afd": "1x1", "afd_batches": 3},
}


def measure(model: str, device: str) -> dict[str, Any]:
    """A model by all ways."""
    with ExitStack() as stack:
        folders, engines = {}, {}
        for name, way in WAYS.items():
            how = dict(way)
            if way:
                folders[name] = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                how["afd_trace"] = folders[name]
            llm = LLM(
                model, dtype="float32", device=device, max_model_len=256, kv_cache_memory=2**27, max_num_seqs=STREAMS,
                enable_prefix_caching=False, **how,
            )  # fmt: skip
            engines[name] = stack.enter_context(llm)
        torch.set_num_threads(1)  # also of the one process: every process has as many
        prompts = [[(7 * each + at) % 1000 + 10 for at in range(PROMPT)] for each in range(STREAMS)]
        seconds: dict[str, list[float]] = {name: [] for name in WAYS}
        answers = set()
        for turn in track(range(ROUNDS + 1), model):
            for name, llm in engines.items():
                llm.engine.on_step = (times := _Times()).add
                outputs = llm.generate(prompts, SamplingParams(max_tokens=NEW, ignore_eos=True))
                answers.add(tuple(tuple(output.token_ids) for output in outputs))
                if turn:  # the first warms up
                    seconds[name].append(statistics.median(times.decode))
        layers, choices = engines["one process"].model.config.num_layers, engines["one process"].model.choices
        spans = {name: read_spans(folder) for name, folder in folders.items()}
    one = statistics.median(seconds["one process"])
    rows = []
    for name in WAYS:
        row: dict[str, Any] = {"way": name, "step_s": statistics.median(seconds[name]), "rounds_s": seconds[name]}
        row["against_one_process"] = statistics.median(
            mine / whole for mine, whole in zip(seconds[name], seconds["one process"], strict=True)
        )
        if name in spans:
            row |= turns(spans[name], WAYS[name]["afd_batches"], layers)
        rows.append(row)
    return {
        "model": model, "dtype": str(choices.dtype), "quantization": choices.quantization, "layers": layers,
        "same_tokens": len(answers) == 1, "one_process_s": one, "ways": rows,
    }  # fmt: skip


class _Times:
    """Forward passes of steps in which every request decodes."""

    def __init__(self) -> None:
        self.decode: list[float] = []

    def add(self, record: Any) -> None:
        if record.num_tokens == STREAMS == len(record.parts):
            self.decode.append(record.seconds["forward"])


def turns(spans: list[Span], batches: int, layers: int) -> dict[str, Any]:
    """Of all decode steps the median, and the last of them as it was."""
    steps: dict[int, list[Span]] = {}
    for span in spans:
        steps.setdefault(span.step, []).append(span)
    width = batches * layers
    found = []
    for step in steps.values():
        here = [span for span in step if span.what == "attention"]
        if len(here) != width:
            continue
        found.append(_one_step(step))
    middle = {name: statistics.median(each[name] for each in found) for name in found[0]}
    # A layer's cycle is the longer of: what a side computes for all batches, and one batch's way around, one after the
    # other. What is on its way has no seconds of its own here: it shows as waiting with one batch.
    around = (middle["here_s"] + middle["there_s"]) / batches
    middle["by_formula_s"] = max(middle["here_s"], middle["there_s"], around)
    last = max(number for number, step in steps.items() if sum(span.what == "attention" for span in step) == width)
    begin = min(span.begin_s for span in steps[last])
    drawn = [
        {**span._asdict(), "begin_s": span.begin_s - begin, "end_s": span.end_s - begin}
        for span in steps[last]
        if span.layer < 4
    ]
    return middle | {"steps": len(found), "drawn": drawn}


def _one_step(step: list[Span]) -> dict[str, float]:
    here = [span for span in step if span.what == "attention"]
    there = [span for span in step if span.what == "feed-forward"]
    waits = [span for span in step if span.what == "wait" and span.rank == 0]
    whole = max(span.end_s for span in waits) - min(span.begin_s for span in here)
    here_s, there_s = _seconds(here), _seconds(there)
    both = sum(
        max(0.0, min(a.end_s, b.end_s) - max(a.begin_s, b.begin_s)) for a in here for b in there
    )  # while each side computes for another batch
    return {
        "trace_s": whole, "here_s": here_s, "there_s": there_s, "wait_s": _seconds(waits), "both_s": both,
        "bubble": 1 - max(here_s, there_s) / whole, "hidden": both / min(here_s, there_s),
    }  # fmt: skip


def _seconds(spans: list[Span]) -> float:
    return sum(span.end_s - span.begin_s for span in spans)


def main() -> None:
    """Measure, and write the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=["smollm2", "tiny-moe"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "afd.json")
    args = parser.parse_args()
    began = time.time()
    models = [measure(model, args.device) for model in args.models]
    for each in models:
        print(each["model"], "same tokens" if each["same_tokens"] else "OTHER TOKENS")
        for row in each["ways"]:
            print(
                f"  {row['way']:18} {row['step_s'] * 1e3:7.2f} ms, {row['against_one_process']:.2f} of one process",
                end="",
            )
            print(f", bubble {row['bubble']:.0%}, hidden {row['hidden']:.0%}" if "bubble" in row else "")
    data = {"streams": STREAMS, "prompt": PROMPT, "new": NEW, "rounds": ROUNDS, "seconds": time.time() - began}
    command = f"python benchmarks/afd.py --models {' '.join(args.models)}"
    write_record(args.out, data | {"models": models}, command, args.device)


if __name__ == "__main__":
    main()
