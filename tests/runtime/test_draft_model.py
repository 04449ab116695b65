"""A draft model's twins: in step with their requests through right and wrong guesses, chunks, and too few blocks."""

import pytest
import torch

from miniserve.core.block_pool import BlockPool
from miniserve.core.request import Request
from miniserve.core.sampling_params import Limits
from miniserve.model.generate import generate_cached
from miniserve.model.load import load_model
from miniserve.runtime.draft_model import DraftModel
from miniserve.runtime.kv_cache import KVCache
from miniserve.runtime.model_runner import ModelRunner

PROMPT = [7, 3, 99, 4, 18, 5, 90, 33, 21, 8]


@pytest.fixture(scope="module")
def model(tiny_directory):
    return load_model(str(tiny_directory("llama")[0]), dtype="float32", device="cpu")


def drafting(model, blocks=32, budget=64):
    cache = KVCache(model.config, blocks, 4, dtype=torch.float32, device=torch.device("cpu"))
    return DraftModel(ModelRunner(model.decoder, cache, 4), BlockPool(blocks, 4), longest=3, budget=budget)


def request(name="r", prompt=PROMPT):
    return Request(name, prompt, Limits(40))


def likeliest(model, tokens, count):
    """What the draft model says alone."""
    return list(generate_cached(model.decoder, tokens, count))


@pytest.mark.parametrize("follows", [[], [5], [1, 2, 3, 4, 5, 6]])
def test_a_guess_hangs_on_the_requests_tokens_alone(model, follows):
    """After each guess the request goes on with some of it and then with other tokens, at times with many."""
    draft, going = drafting(model), request()
    for taken in (0, 1, 2, 3, 3, 0):
        (guess,) = draft.propose([going], [3])
        assert guess == likeliest(model, going.token_ids, 3)
        going.token_ids += [*guess[:taken], *follows] or guess[:1]
    draft.forget(going)
    draft.forget(going)
    assert draft._pool.num_free == draft._pool.num_blocks


def test_a_long_prompt_is_caught_up_with_in_chunks_and_rooms_differ(model):
    draft, long, short = drafting(model, budget=8), request("long", PROMPT * 2), request("short", PROMPT[:3])
    found = [draft.propose([long, short], [2, 1]) for _ in range(3)]
    assert found[0] == found[1] == [[], []]
    assert found[2] == [likeliest(model, PROMPT * 2, 2), likeliest(model, PROMPT[:3], 1)]


def test_without_blocks_there_is_no_guess_and_nobody_loses_any(model):
    draft, first, second = drafting(model, blocks=5), request("first"), request("second")
    assert draft.propose([first, second], [3, 3]) == [likeliest(model, PROMPT, 3), []]
    draft.forget(first)
    assert draft.propose([second], [3]) == [likeliest(model, PROMPT, 3)]
    draft._pool.check()
