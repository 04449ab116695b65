"""KV that lives elsewhere, through a connector that is slow, fails, and reads memory late."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.core.block_pool import BlockPool
from miniserve.core.connectors import Connectors
from miniserve.core.request import FinishReason, Request, Status
from miniserve.core.sampling_params import Limits, SamplingParams
from miniserve.core.scheduler import Scheduler
from support.fake_connector import FakeTier
from support.fake_device import FakeDevice, alone


class Engine:
    def __init__(self, num_blocks=8, block_size=4, tier_options=None, tier=FakeTier, **options):
        self.pool, self.device = BlockPool(num_blocks, block_size), FakeDevice(num_blocks, block_size)
        self.tier = tier(self.device, **(tier_options or {}))
        limits = {"max_num_seqs": 4, "max_num_batched_tokens": 16, "max_model_len": num_blocks * block_size}
        self.scheduler = Scheduler(self.pool, **{**limits, **options}, connector=self.tier)

    def add(self, name, prompt, max_tokens=2, **options):
        request = Request(name, prompt, Limits(max_tokens), **options)
        self.scheduler.add(request)
        return request

    def step(self):
        step = self.scheduler.schedule()
        self.scheduler.check()
        if step.scheduled:
            self.scheduler.update(step, self.device.launch(step).result().tokens)
        self.scheduler.check()
        return step

    def run(self):
        for _ in range(5000):
            if not self.scheduler.has_work:
                assert self.pool.num_free == self.pool.num_blocks
                return
            self.step()
        raise AssertionError("no end")


def right(request):
    return request.output_token_ids == alone(request.prompt_token_ids, request.limits.max_tokens)


def forget_device(engine):
    """The tier alone remembers: the pool's cache and the device's memory are wiped."""
    engine.pool.clear_cache()
    engine.device.memory = [[None] * engine.device.block_size for _ in engine.device.memory]


def test_what_the_pool_lost_comes_back_from_the_tier():
    engine = Engine()
    prompt = list(range(13))
    engine.add("first", prompt)
    engine.run()
    forget_device(engine)
    again = engine.add("again", prompt)
    engine.run()
    assert (again.num_cached, again.num_loaded, again.num_reused) == (0, 12, 12)
    assert right(again)


def test_the_pool_is_asked_first_and_the_tier_for_the_rest():
    engine = Engine(num_blocks=8)
    prompt = list(range(13))
    engine.add("first", prompt)
    engine.run()
    hashes = engine.tier.blocks.copy()
    forget_device(engine)
    engine.add("short", prompt[:5])
    engine.run()
    assert hashes.keys() <= engine.tier.blocks.keys()
    again = engine.add("again", prompt)
    engine.run()
    assert (again.num_cached, again.num_loaded, again.num_reused) == (4, 8, 12)
    assert right(again)


def test_a_request_that_loads_takes_no_part_in_steps_and_others_go_on():
    engine = Engine(num_blocks=16)
    prompt = list(range(9))
    engine.add("first", prompt)
    engine.run()
    engine.tier.pace = lambda: 0
    forget_device(engine)
    loads, other = engine.add("loads", prompt), engine.add("other", [30, 31])
    step = engine.step()
    assert [part.request for part in step.scheduled] == [other]
    assert loads.status is Status.LOADING
    engine.run()
    assert right(loads)
    assert right(other)
    assert loads.num_loaded == 8


def test_what_was_loaded_is_found_by_who_comes_in_next():
    engine = Engine(max_num_seqs=2)
    prompt = list(range(13))
    engine.add("first", prompt)
    engine.run()
    forget_device(engine)
    engine.tier.pace = lambda: 0
    loads = engine.add("loads", prompt, max_tokens=4)
    engine.add("other", [30, 31], max_tokens=1)
    twin = engine.add("twin", prompt)
    engine.step()
    assert (loads.status, twin.status) == (Status.LOADING, Status.WAITING), "two seats are taken"
    engine.tier.pace = lambda: 1000
    engine.step()
    assert (twin.num_cached, engine.tier.num_loads) == (12, 1)
    engine.run()
    assert right(loads)
    assert right(twin)


def test_a_load_that_fails_is_computed_instead():
    engine = Engine(tier_options={"loses": lambda: True})
    prompt = list(range(13))
    engine.add("first", prompt)
    engine.run()
    forget_device(engine)
    again = engine.add("again", prompt)
    engine.run()
    assert (engine.tier.num_loads, again.num_loaded, again.num_reused) == (1, 0, 0)
    assert right(again)


def test_what_comes_back_after_a_preemption_was_not_reused():
    """It is the request's own: it was computed for it."""
    engine = Engine(num_blocks=6)
    one, other = (
        engine.add(name, [start + index for index in range(9)], max_tokens=7) for name, start in (("a", 0), ("b", 20))
    )
    while not other.num_preemptions:
        engine.step()
    engine.pool.clear_cache()
    engine.run()
    assert other.num_loaded > 0
    assert (one.num_reused, other.num_reused) == (0, 0)
    assert right(one)
    assert right(other)


def test_an_aborted_load_keeps_its_blocks_until_it_has_ended():
    engine = Engine()
    prompt = list(range(13))
    engine.add("first", prompt)
    engine.run()
    forget_device(engine)
    engine.tier.pace = lambda: 0
    doomed, other = engine.add("doomed", prompt), engine.add("other", [20] * 3, max_tokens=6)
    engine.step()
    table = list(doomed.block_table)
    engine.scheduler.finish(doomed, FinishReason.ABORT)
    assert doomed.status is Status.LOADING
    assert not any(engine.pool.is_free(block) for block in table)
    engine.step()
    engine.tier.pace = lambda: 1000
    assert [part.request for part in engine.step().scheduled] == [other], "nothing is computed for it"
    assert doomed.status is Status.FINISHED
    engine.run()
    assert doomed.output_token_ids == []
    assert right(other)


def test_a_block_being_saved_is_not_given_to_anyone():
    engine = Engine(num_blocks=5, tier_options={"pace": lambda: 0})
    engine.add("first", list(range(8)), max_tokens=2)
    while engine.scheduler.running or engine.scheduler.num_waiting:
        engine.step()
    assert engine.pool.num_free == 3
    second = engine.add("second", [9] * 14, max_tokens=2)  # needs four blocks
    engine.step()
    assert second.status is Status.WAITING
    engine.run()
    assert right(second)
    forget_device(engine)
    engine.tier.pace = lambda: 1000
    again = engine.add("again", list(range(8)), max_tokens=2)
    engine.run()
    assert again.num_loaded == 4
    assert right(again)


def test_a_tier_does_not_stand_in_for_logits_that_are_wanted():
    engine = Engine()
    prompt = list(range(13))
    engine.add("first", prompt)
    engine.run()
    wants = engine.add("wants", prompt, params=SamplingParams(prompt_logprobs=1))
    engine.run()
    assert (wants.num_cached, wants.num_loaded) == (0, 0)


class Exporter(FakeTier):
    """Keeps the blocks of what has ended, as a prefill worker does until its peer has fetched them."""

    def __init__(self, device):
        super().__init__(device)
        self.exported = []

    def computed(self, request, first_block):
        return ()

    def finished(self, request):
        self.exported += request.block_table
        return list(request.block_table)

    def poll(self, wait):
        progress = super().poll(wait)
        if wait:
            progress.released, self.exported = self.exported, []
        return progress


def test_blocks_of_an_ended_request_can_be_kept_for_a_peer():
    engine = Engine(tier=Exporter)
    exporter = engine.tier
    request = engine.add("export", list(range(6)), max_tokens=1)
    engine.step()
    assert request.status is Status.FINISHED
    assert engine.pool.num_free == engine.pool.num_blocks - 2
    assert len(exporter.exported) == 2
    assert engine.scheduler.has_work
    engine.run()


def test_of_several_the_first_that_offers_brings():
    engine = Engine(tier=lambda device: Connectors(Exporter(device), FakeTier(device), FakeTier(device)))
    exporter, first, second = engine.tier._connectors
    prompt = list(range(13))
    engine.add("first", prompt)
    engine.run()
    assert len(first.blocks) == len(second.blocks) == 3, "both were told, and held the blocks at a time"
    assert exporter.num_loads == 0
    forget_device(engine)
    del first.blocks[engine.add("again", prompt).block_hashes(4, 3)[1]]
    engine.run()
    assert (first.num_loads, second.num_loads) == (1, 0), "what is left is computed"
    forget_device(engine)
    first.blocks.clear()
    again = engine.add("and again", prompt)
    engine.run()
    assert (first.num_loads, second.num_loads, again.num_loaded) == (1, 1, 12)
    assert right(again)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    requests=st.lists(
        st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=14), st.integers(1, 6), st.integers(0, 1)),
        min_size=1,
        max_size=10,
    ),
    num_blocks=st.integers(7, 16),
    block_size=st.sampled_from([1, 2, 4]),
    seats=st.integers(1, 5),
    seed=st.integers(0, 1000),
    failing=st.booleans(),
    num_tiers=st.integers(1, 2),
)
def test_slow_and_failing_tiers_change_no_output(requests, num_blocks, block_size, seats, seed, failing, num_tiers):
    rng = random.Random(seed)
    engine = Engine(
        num_blocks,
        block_size,
        {"pace": lambda: rng.randrange(4), "loses": lambda: failing and rng.random() < 0.5},
        lambda *args, **options: Connectors(*(FakeTier(*args, **options) for _ in range(num_tiers))),
        max_num_seqs=seats,
    )
    added = []
    for number, (prompt, max_tokens, priority) in enumerate(requests):
        if len(prompt) + max_tokens > num_blocks * block_size:
            continue
        added.append(engine.add(f"r{number}", prompt, max_tokens, priority=priority))
        for _ in range(rng.randrange(3)):
            if engine.scheduler.has_work:
                engine.step()
        if rng.random() < 0.2:
            engine.pool.clear_cache()
        if rng.random() < 0.2:
            engine.scheduler.finish(rng.choice(added), FinishReason.ABORT)
    engine.run()
    assert all(right(request) for request in added if request.finish_reason is not FinishReason.ABORT)
