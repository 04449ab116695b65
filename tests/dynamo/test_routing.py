"""KV-aware routing against round-robin, in a real deployment: conversations by both, in turn, on the same workers."""

import random
import statistics
import time
from collections import defaultdict

import pytest

pytest.importorskip("dynamo.common", reason="NVIDIA Dynamo is not installed")

WORDS = ["fox", "dog", "quick", "brown", "lazy", "jumps", "hello", "world"]
USERS, TURNS = 6, 4


def test_kv_aware_routing_beats_round_robin(whole, record_property):
    """Six conversations with each, on two workers, whose prompts take long: hit rate and time to the first token."""
    rng, routers = random.Random(0), ("round-robin", "kv")
    starts = {
        (router, user): f"{router} {user}: " + " ".join(rng.choice(WORDS) for _ in range(250))
        for router in routers
        for user in range(USERS)
    }
    order = [user for user in range(USERS) for _ in range(TURNS)]
    rng.shuffle(order)
    cached, asked, waits = defaultdict(int), defaultdict(int), defaultdict(list)
    for turn, user in enumerate(order):
        for router in routers:
            began = time.monotonic()
            usage = whole.complete(f"{starts[router, user]} question {turn}", 1, router).usage
            waits[router].append(time.monotonic() - began)
            cached[router] += usage.prompt_tokens_details.cached_tokens or 0
            asked[router] += usage.prompt_tokens
            time.sleep(0.1)  # for what became of the cache to reach the router
    hit_rate = {router: cached[router] / asked[router] for router in routers}
    mean_wait_s = {router: statistics.mean(waits[router]) for router in routers}
    record_property("hit_rate", hit_rate)
    record_property("mean_first_token_s", mean_wait_s)
    assert hit_rate["kv"] > hit_rate["round-robin"] + 0.1
    assert mean_wait_s["kv"] < mean_wait_s["round-robin"]
