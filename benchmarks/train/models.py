"""The two small models of `tiny_moe.toml` and `tiny_dense.toml`: trained, measured, compared.

    python benchmarks/train/plays.py artifacts/plays
    python benchmarks/train/models.py train tiny_moe         # as `miniserve train`, and what it took
    python benchmarks/train/models.py train tiny_dense
    python benchmarks/train/models.py record

As many weights are at work for a token in one as in the other, and text, batches, schedule and seed are the same. Each
run has one thread, so that both fit on two cores, and is timed by the wall and by its core. `record` reads both folders
below artifacts/train, looks at the whole held-out text with the weights as they were saved, in bfloat16, and compares
the core's time with a large float32 product's.
"""

import argparse
import json
import math
import statistics
import time
import tomllib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from parts import PLAYS, product_flops_per_cpu_s, write_part

from miniserve.kernels import reference
from miniserve.model.decoder import Decoder
from miniserve.model.load import load_model
from miniserve.model.tokenizer.tokenizer import Tokenizer
from miniserve.tables import from_table, to_table
from miniserve.train.corpus import Corpus
from miniserve.train.flops import token_flops
from miniserve.train.forward import forward
from miniserve.train.session import Session
from miniserve.train.settings import TrainSettings
from miniserve.train.text import END_ID, read_text

NAMES = ("tiny_moe", "tiny_dense")
RUNS, MEASURED = Path("artifacts/train"), "measured.json"
CPU = torch.device("cpu")
POINT = 25  # a curve has a point for so many steps, their mean
ROWS = 16  # of the held-out text at once


def settings(name: str) -> TrainSettings:
    """As the file says."""
    file = Path(__file__).with_name(f"{name}.toml")
    return from_table(TrainSettings, tomllib.loads(file.read_text(encoding="utf-8")) | {"text": str(PLAYS)})


def train(name: str) -> None:
    """A whole run, and what it took."""
    torch.set_num_threads(1)
    wall, cpu = time.perf_counter(), time.process_time()
    session = Session(settings(name), RUNS / name, CPU)
    if session.trainer.step:
        raise SystemExit(f"{session.directory} has a run already, whose time nobody took")
    for report in session.run():
        if (held_out := session.history[-1].get("held_out")) is not None:
            print(f"{name}: step {report.step}, {time.process_time() - cpu:.0f} s, held out {held_out:.4f}", flush=True)
    measured = {"threads": 1, "wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    (session.directory / MEASURED).write_text(json.dumps(measured), encoding="utf-8")


def points(history: list[dict[str, float]], key: str) -> list[float]:
    """A curve, coarser."""
    return [statistics.mean(row[key] for row in history[at : at + POINT]) for at in range(0, len(history), POINT)]


def of_run(name: str) -> dict[str, Any]:
    """What is known of one that is done."""
    given, folder = settings(name), RUNS / name
    history = json.loads((folder / "history.json").read_text(encoding="utf-8"))
    measured = json.loads((folder / MEASURED).read_text(encoding="utf-8"))
    loaded = load_model(str(folder), dtype="float32", device="cpu", backend="torch")
    tokens, flops = given.step_tokens * given.steps, token_flops(loaded.config, given.length)
    peak = product_flops_per_cpu_s()
    return {
        "parameters": loaded.config.num_parameters(),
        "active_parameters": loaded.config.num_active_parameters(),
        "settings": {key: value for key, value in to_table(given).items() if key != "text"},
        "tokens": tokens,
        "token_flops": flops,
        "train": points(history, "cross_entropy"),
        "held_out": [[row["step"], row["held_out"]] for row in history if "held_out" in row],
        "balance": points(history, "balance"),
        "tokens_per_s": tokens / measured["wall_s"],
        "tokens_per_cpu_s": tokens / measured["cpu_s"],
        "product_flops_per_cpu_s": peak,
        "mfu": tokens / measured["cpu_s"] * flops / peak,
        "whole_held_out": whole_held_out(given, loaded.decoder, loaded.tokenizer),
        "by_position": by_position(given, loaded.decoder, loaded.tokenizer),
        **{name: measured[name] for name in ("threads", "wall_s", "cpu_s")},
    }


def corpus_of(given: TrainSettings, tokenizer: Tokenizer, length: int) -> Corpus:
    """The text again, in windows of this length."""
    ids = [token for text in read_text(PLAYS) for token in (*tokenizer.encode(text), END_ID)]
    return Corpus(ids, length, given.held_out)


@torch.inference_mode()
def by_position(given: TrainSettings, decoder: Decoder, tokenizer: Tokenizer) -> list[list[float]]:
    """Held-out loss in windows as long as the model serves: [first position, last, mean loss] for each training length.

    Only the first of them was trained on; the others say what becomes of the model beyond.
    """
    length = given.model.positions
    entropies = []
    corpus = corpus_of(given, tokenizer, length)
    for inputs, targets in corpus.held_out_batches(ROWS // 4, len(corpus.held_out)):
        logits = forward(decoder, inputs).logits
        entropies.append(F.cross_entropy(logits, targets.flatten(), reduction="none").view(targets.shape))
    mean = torch.cat(entropies).mean(0)
    starts = range(0, length, given.length)
    return [[at, at + given.length - 1, float(mean[at : at + given.length].mean())] for at in starts]


@torch.inference_mode()
def whole_held_out(given: TrainSettings, decoder: Decoder, tokenizer: Tokenizer) -> dict[str, Any]:
    """Loss of all that is held out, in nats a token and bits a byte, and each sparse layer's shares of its choices."""
    corpus, moe = corpus_of(given, tokenizer, given.length), decoder.config.moe
    nats = tokens = 0.0
    counts = torch.zeros(decoder.config.num_layers, moe.num_experts) if moe else None
    length = 0
    for inputs, targets in corpus.held_out_batches(ROWS, len(corpus.held_out)):
        found = forward(decoder, inputs)
        nats += float(F.cross_entropy(found.logits, targets.flatten(), reduction="sum"))
        tokens += targets.numel()
        length += sum(len(tokenizer.decode(row.tolist()).encode()) for row in targets)
        for layer, scores in enumerate(found.router_logits):
            assert moe is not None
            assert counts is not None
            chosen = reference.route(scores, moe.experts_per_token, moe.normalize_weights)[1]
            counts[layer] += torch.bincount(chosen.flatten(), minlength=moe.num_experts)
    shares = [] if counts is None else (counts / counts.sum(1, keepdim=True)).tolist()
    return {
        "tokens": int(tokens), "bytes": length, "loss": nats / tokens,
        "bits_per_byte": nats / length / math.log(2), "expert_shares": shares,
    }  # fmt: skip


def main() -> None:
    """Train one, or record both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "record"))
    parser.add_argument("name", choices=NAMES, nargs="?", help="the model to train")
    arguments = parser.parse_args()
    if (arguments.what == "train") != (arguments.name is not None):
        parser.error("name the model to train; record takes both")
    if arguments.name:
        train(arguments.name)
        return
    runs = {name: of_run(name) for name in NAMES}
    command = "; ".join(f"python benchmarks/train/models.py train {name}" for name in NAMES)
    write_part("models", {"steps_a_point": POINT, "runs": runs}, f"{command}; python benchmarks/train/models.py record")
    for name, run in runs.items():
        print(name, {key: run[key] for key in ("parameters", "active_parameters", "tokens_per_s", "cpu_s", "wall_s")})
        print(name, run["whole_held_out"])


if __name__ == "__main__":
    main()
