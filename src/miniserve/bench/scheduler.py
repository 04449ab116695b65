"""`bench scheduler`: what a step costs in the core alone, without a model: schedule and update, in CPU time."""

import random
import statistics
import time
from typing import Any

from miniserve.core.block_pool import BlockPool
from miniserve.core.request import Request
from miniserve.core.sampling_params import Limits
from miniserve.core.scheduler import Scheduler

PROMPT, OUTPUT, BLOCK_SIZE = 100, 400, 16


def bench_scheduler(steps: int = 200) -> dict[str, Any]:
    """Decode steps of several batch sizes, and of one with 10,000 requests in the queue.

    Mean over the steps, so that the hashing of blocks that fill up is in it.
    """
    found = {}
    for running, waiting in ((1, 0), (8, 0), (64, 0), (256, 0), (64, 10_000)):
        name = f"running_{running}" + (f"_waiting_{waiting}" if waiting else "")
        found[name] = _step_us(running, waiting, steps)
    return {"cpu_us_per_step": found}


def _step_us(running: int, waiting: int, steps: int) -> dict[str, float]:
    scheduler = Scheduler(
        BlockPool(running * (PROMPT + OUTPUT), BLOCK_SIZE),
        max_num_seqs=running,
        max_num_batched_tokens=max(2048, running * PROMPT),
        max_model_len=PROMPT + OUTPUT,
    )
    rng = random.Random(0)
    for number in range(running + waiting):
        prompt = [rng.randrange(50_000) for _ in range(PROMPT)]
        scheduler.add(Request(f"r{number}", prompt, Limits(OUTPUT)))
    step = scheduler.schedule()
    scheduler.update(step, [[0]] * len(step.scheduled))
    seconds = []
    for token in range(steps):
        started = time.process_time()
        step = scheduler.schedule()
        scheduler.update(step, [[token]] * len(step.scheduled))
        seconds.append(time.process_time() - started)
        assert len(step.scheduled) == running
    return {"mean": statistics.mean(seconds) * 1e6, "median": statistics.median(seconds) * 1e6}
