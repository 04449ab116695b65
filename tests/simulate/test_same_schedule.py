"""It is the same scheduler: the simulator computes, step for step, what an engine with a real model computes."""

import random

import pytest

from miniserve.core.block_pool import BlockPool
from miniserve.core.engine import Engine
from miniserve.core.executor import Computed
from miniserve.core.request import Request
from miniserve.core.sampling_params import Limits
from miniserve.core.scheduler import Scheduler
from miniserve.hardware.cost import Part
from miniserve.llm import LLM
from miniserve.model.shape import shape_of
from miniserve.simulate.device import VirtualClock
from miniserve.simulate.instance import Instance
from support import tiny_models

LIMITS = {"max_num_seqs": 6, "max_num_batched_tokens": 48}
NUM_BLOCKS = 14


class TimedModel:
    """A real model, and a clock that advances by what the cost model says of each step."""

    def __init__(self, executor, step_time, clock):
        self.executor, self.step_time, self.clock = executor, step_time, clock

    def launch(self, step):
        parts = [Part(part.start, part.num_tokens, int(part.samples)) for part in step.scheduled]
        result = self.executor.launch(step).result()
        self.clock.now_s += self.step_time.seconds(parts)
        return Computed(result)


def drive(add, step, has_work, clock, arrivals):
    """Requests come at their times; a step that has begun is not disturbed."""
    now_s, left = 0.0, list(arrivals)
    while left or has_work():
        if not has_work():
            now_s = max(now_s, left[0][0])
        while left and left[0][0] <= now_s:
            at_s, request = left.pop(0)
            clock.now_s = at_s
            add(request)
        clock.now_s = now_s
        step()
        now_s = clock.now_s


def shown(record):
    parts = [(part.request_id, part.start, part.num_tokens, part.sampled) for part in record.parts]
    return record.start_s, parts, record.preempted, record.num_running, record.num_waiting, record.num_free_blocks


@pytest.mark.parametrize("seed", range(3))
def test_step_for_step(make, tmp_path, seed):
    tiny_models.save("llama", tmp_path)
    with LLM(str(tmp_path), dtype="float32", device="cpu", backend="torch", block_size=16, **LIMITS) as llm:
        config = llm.model.config
        deployment = make(NUM_BLOCKS, shape=shape_of(config), block_size=16, max_model_len=256, **LIMITS)
        rng = random.Random(seed)
        arrivals, now_s, step_s = [], 0.0, deployment.step_time.seconds([Part(0, 16)])
        for name in range(14):
            now_s += rng.expovariate(1 / (3 * step_s))
            prompt = [1] * 16 * rng.randint(0, 2) + [
                rng.randrange(config.vocab_size) for _ in range(rng.randint(1, 90))
            ]
            arrivals.append((now_s, str(name), prompt, rng.randint(1, 40)))

        def requests():
            return [(at_s, Request(name, prompt, Limits(most))) for at_s, name, prompt, most in arrivals]

        clock, real = VirtualClock(), []
        scheduler = Scheduler(BlockPool(NUM_BLOCKS, 16), max_model_len=256, **LIMITS)
        model = TimedModel(llm.engine.executor, deployment.step_time, clock)
        engine = Engine(scheduler, model, clock, on_step=lambda record: real.append(shown(record)))
        drive(engine.add_request, engine.step, lambda: engine.has_work, clock, requests())

    simulated = []
    instance = Instance("one", deployment)
    instance.engine.on_step = lambda record: simulated.append(shown(record))
    drive(
        lambda request: instance.submit(request, instance.clock.now_s),
        lambda: instance.step(instance.clock.now_s), lambda: instance.has_work, instance.clock, requests(),
    )  # fmt: skip
    assert simulated == real
    assert any(preempted for _, _, preempted, *_ in real), "the pool was never too small: the test shows little"
    assert len(real) > 50
