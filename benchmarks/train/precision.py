"""What a number format costs in training: one small model, the same batches, in float32, bfloat16 and FP8.

    python benchmarks/train/plays.py artifacts/plays
    python benchmarks/train/precision.py

Each format trains from each of some seeds, which decide the first weights and the batches. A format's cost is its loss
less float32's at the same seed; whether that is anything is for the spread among seeds to say. FP8 is emulated: the
rounding is E4M3's, the speed is not. A few minutes of one core.
"""

import statistics
import time
from typing import Any

import torch
from parts import PLAYS, write_part

from miniserve.model.decoder import Decoder
from miniserve.train.corpus import Corpus
from miniserve.train.initialise import initialise
from miniserve.train.precision import Mode, operators
from miniserve.train.settings import ModelSettings, TrainSettings
from miniserve.train.text import make_tokenizer, read_text, token_ids
from miniserve.train.trainer import Trainer

MODEL = ModelSettings(
    vocabulary=512, hidden=128, layers=2, heads=4, kv_heads=2, head_dim=32, intermediate=256, positions=128
)
MEASURED: tuple[Mode, ...] = ("fp32", "bf16", "fp8")
STEPS, SEEDS, POINT = 200, (0, 1, 2), 10  # a curve has a point for so many steps, their mean


def settings(mode: str, seed: int) -> TrainSettings:
    """Of one run."""
    return TrainSettings(
        MODEL, str(PLAYS), STEPS, batch=8, length=128, learning_rate=3e-3, warmup=30, precision=mode, seed=seed
    )


def run(mode: Mode, seed: int, corpus: Corpus) -> dict[str, Any]:
    """Train once: the curve, and the held-out text's loss at its end."""
    decoder = Decoder(MODEL.config(), dtype=torch.float32, device=torch.device("cpu"), ops=operators(mode))
    initialise(decoder, seed)
    trainer = Trainer(settings(mode, seed), decoder, corpus)
    begin = time.process_time()
    losses = [report.cross_entropy for report in trainer.run()]
    seconds = time.process_time() - begin
    curve = [statistics.mean(losses[at : at + POINT]) for at in range(0, STEPS, POINT)]
    return {"mode": mode, "seed": seed, "train": curve, "held_out": trainer.evaluate(), "cpu_s": seconds}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each format: its losses' mean and spread over seeds, and what it adds to float32's, seed by seed."""
    held_out = {(each["mode"], each["seed"]): each["held_out"] for each in runs}
    found = {}
    for mode in MEASURED:
        mine = [held_out[mode, seed] for seed in SEEDS]
        added = [held_out[mode, seed] - held_out["fp32", seed] for seed in SEEDS]
        found[mode] = {
            "held_out_mean": statistics.mean(mine),
            "held_out_stdev": statistics.stdev(mine),
            "less_fp32": added,
            "less_fp32_mean": statistics.mean(added),
        }
    return found


def main() -> None:
    """Measure and record."""
    torch.set_num_threads(1)
    texts = read_text(PLAYS)
    tokenizer = make_tokenizer(texts, MODEL.vocabulary)
    corpus = Corpus(token_ids(tokenizer, texts), 128)
    runs = []
    for seed in SEEDS:
        for mode in MEASURED:
            runs.append(run(mode, seed, corpus))
            print({key: value for key, value in runs[-1].items() if key != "train"}, flush=True)
    setting = {**vars(settings("fp32", 0)), "model": vars(MODEL), "threads": 1}
    del setting["precision"], setting["seed"], setting["text"]
    data = {"setting": setting, "steps_a_point": POINT, "runs": runs, "summary": summary(runs)}
    write_part("precision", data, "python benchmarks/train/precision.py")


if __name__ == "__main__":
    main()
