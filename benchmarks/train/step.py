"""What a training step of the small models costs, and what a mixture's costs with one expert after the other.

    python benchmarks/train/step.py

The steps of all variants take turns; each has one thread. Medians of CPU seconds, which other work on the machine
disturbs less than the wall's.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from models import settings
from parts import product_flops_per_cpu_s, write_part

from miniserve.kernels import reference
from miniserve.kernels.operators import Operators
from miniserve.model.decoder import Decoder
from miniserve.train.corpus import Corpus
from miniserve.train.flops import token_flops
from miniserve.train.initialise import initialise
from miniserve.train.precision import Mode, operators
from miniserve.train.settings import TrainSettings
from miniserve.train.trainer import StepReport, Trainer

ROUNDS, WARMUP = 11, 3
PRECISIONS: tuple[Mode, ...] = ("fp32", "bf16")
SORTED, IN_TURN = "sorted by expert", "one expert after the other"
#: Model, precision, experts of a layer (of 64, a token goes to four that are half as wide), and how they are computed.
VARIANTS: tuple[tuple[str, Mode, int, str | None], ...] = (
    ("tiny_dense", "fp32", 0, None),
    ("tiny_dense", "bf16", 0, None),
    *(("tiny_moe", mode, 8, how) for mode in PRECISIONS for how in (SORTED, IN_TURN)),
    *(("tiny_moe", mode, 64, how) for mode in PRECISIONS for how in (SORTED, IN_TURN)),
)


def given_for(name: str, mode: Mode, experts: int) -> TrainSettings:
    """What a variant trains."""
    given = settings(name)
    model = given.model
    if experts > model.experts:
        model = replace(model, experts=experts, experts_per_token=4, expert_intermediate=model.expert_intermediate // 2)
    return replace(given, model=model, precision=mode)


def steps(given: TrainSettings, how: str | None) -> Iterator[StepReport]:
    """Of one variant, on random tokens."""
    ops = cast(Operators, reference) if how == IN_TURN else operators(cast(Mode, given.precision))
    decoder = Decoder(given.model.config(), dtype=torch.float32, device=torch.device("cpu"), ops=ops)
    initialise(decoder, given.seed)
    ids = np.random.default_rng(0).integers(0, given.model.vocabulary, 100_000).astype(np.int32)
    return Trainer(given, decoder, Corpus(ids, given.length)).run()


def main() -> None:
    """Measure and record."""
    torch.set_num_threads(1)
    peak = product_flops_per_cpu_s()
    running = [steps(given_for(name, mode, experts), how) for name, mode, experts, how in VARIANTS]
    seconds: list[list[float]] = [[] for _ in VARIANTS]
    for _ in range(WARMUP + ROUNDS):
        for run, taken in zip(running, seconds, strict=True):
            begin = time.process_time()
            next(run)
            taken.append(time.process_time() - begin)
    rows: list[dict[str, Any]] = []
    for (name, mode, experts, how), taken in zip(VARIANTS, seconds, strict=True):
        given, row = given_for(name, mode, experts), {"model": name, "precision": mode, "experts": experts, "how": how}
        flops = given.step_tokens * token_flops(given.model.config(), given.length)
        rows.append(row | {"cpu_s": statistics.median(taken[WARMUP:]), "flops": flops})
        print(rows[-1], flush=True)
    write_part("step", {"threads": 1, "product_flops_per_cpu_s": peak, "rows": rows}, "python benchmarks/train/step.py")


if __name__ == "__main__":
    main()
