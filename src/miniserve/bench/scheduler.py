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
    """Decode steps of several batch sizes, and of one with 10,000 requests in the queue; at most `OUTPUT` - 1.

    Mean over the steps too, so that the hashing of blocks that fill up is in it.
    """
    found = {}
    for running, waiting in ((1, 0), (8, 0), (64, 0), (256, 0), (64, 10_000)):
        name = f"running_{running}" + (f"_waiting_{waiting}" if waiting else "")
        decode, seconds = Decode(running, waiting), []
        for _ in range(steps):
            started = time.thread_time()
            decode.step()
            seconds.append(time.thread_time() - started)
        found[name] = {"mean": statistics.mean(seconds) * 1e6, "median": statistics.median(seconds) * 1e6}
    return {"cpu_us_per_step": found}


class Decode:
    """A scheduler whose `running` requests have computed their prompts, while `waiting` others wait for a seat."""

    def __init__(self, running: int, waiting: int = 0) -> None:
        self._running = running
        self._scheduler = Scheduler(
            BlockPool(running * -(-(PROMPT + OUTPUT) // BLOCK_SIZE), BLOCK_SIZE),
            max_num_seqs=running,
            max_num_batched_tokens=max(2048, running * PROMPT),
            max_model_len=PROMPT + OUTPUT,
        )
        rng = random.Random(0)
        for number in range(running + waiting):
            prompt = [rng.randrange(50_000) for _ in range(PROMPT)]
            self._scheduler.add(Request(f"r{number}", prompt, Limits(OUTPUT)))
        self.step()

    def step(self) -> None:
        """Schedule a step and take note of it: one token for each request that runs."""
        step = self._scheduler.schedule()
        self._scheduler.update(step, [[0]] * len(step.scheduled))
        assert len(step.scheduled) == self._running
