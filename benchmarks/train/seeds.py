"""A mixture beside a dense model with as many weights at work for a token, from several seeds, and smaller.

    python benchmarks/train/plays.py artifacts/plays
    python benchmarks/train/seeds.py

The two big runs are one seed each; this says how far a seed alone moves the loss, and whether the sign stays. The
model, text and batches are those of `precision.py`, in float32 and for five times as many steps. Two runs at a time, of
one thread each: some four minutes of two cores.
"""

import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from parts import PLAYS, write_part
from precision import MODEL, SEEDS, settings

from miniserve.model.decoder import Decoder
from miniserve.train.corpus import Corpus
from miniserve.train.initialise import initialise
from miniserve.train.precision import operators
from miniserve.train.text import make_tokenizer, read_text, token_ids
from miniserve.train.trainer import Trainer

STEPS, EXPERTS, AT_ONCE = 1000, 8, 2
MODELS = {
    "dense": MODEL,
    "moe": replace(MODEL, experts=EXPERTS, experts_per_token=2, expert_intermediate=MODEL.intermediate // 2),
}


def run(name: str, seed: int, corpus: Corpus) -> dict[str, Any]:
    """Train once; the held-out text's loss at the end."""
    torch.set_num_threads(1)
    model = MODELS[name]
    decoder = Decoder(model.config(), dtype=torch.float32, device=torch.device("cpu"), ops=operators("fp32"))
    initialise(decoder, seed)
    trainer = Trainer(replace(settings("fp32", seed), model=model, steps=STEPS), decoder, corpus)
    begin = time.process_time()
    for _ in trainer.run():
        pass
    seconds = time.process_time() - begin
    config = model.config()
    counts = {"parameters": config.num_parameters(), "active_parameters": config.num_active_parameters()}
    return {"model": name, "seed": seed, "held_out": trainer.evaluate(), "cpu_s": seconds} | counts


def main() -> None:
    """Measure and record."""
    texts = read_text(PLAYS)
    tokenizer = make_tokenizer(texts, MODEL.vocabulary)
    corpus = Corpus(token_ids(tokenizer, texts), settings("fp32", 0).length)
    with ProcessPoolExecutor(AT_ONCE, multiprocessing.get_context("spawn")) as pool:
        asked = [pool.submit(run, name, seed, corpus) for seed in SEEDS for name in MODELS]
        runs = [each.result() for each in asked]
    found = {(each["model"], each["seed"]): each["held_out"] for each in runs}
    less = [found["moe", seed] - found["dense", seed] for seed in SEEDS]
    spread = {name: statistics.stdev(found[name, seed] for seed in SEEDS) for name in MODELS}
    summary = {"moe_less_dense": less, "moe_less_dense_mean": statistics.mean(less), "held_out_stdev": spread}
    setting = {"steps": STEPS, "threads": 1, "experts": EXPERTS, "as_in": "precision"}
    write_part("seeds", {"setting": setting, "runs": runs, "summary": summary}, "python benchmarks/train/seeds.py")


if __name__ == "__main__":
    main()
