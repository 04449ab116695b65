"""The plain generators, and what device and dtype a model gets."""

import pytest
import torch

from miniserve.errors import InvalidRequestError
from miniserve.model.cache import ContiguousCache
from miniserve.model.generate import generate_cached, generate_naive
from miniserve.model.load import load_model
from miniserve.model.tokenizer.detokenizer import Detokenizer

PROMPT = [5, 9, 30, 7]


@pytest.fixture(scope="module", params=["llama", "qwen3", "mixtral", "olmoe"])
def model(request, tiny_directory):
    return load_model(str(tiny_directory(request.param)[0]), dtype="float32", device="cpu")


def test_both_ways_give_the_same_tokens(model):
    naive = list(generate_naive(model.decoder, PROMPT, 24))
    assert naive == list(generate_cached(model.decoder, PROMPT, 24))
    assert len(naive) == 24


def test_stop_token_is_the_last_one(model):
    free = list(generate_cached(model.decoder, PROMPT, 24))
    stop = free[10]
    first = free.index(stop)
    for generate in (generate_naive, generate_cached):
        assert list(generate(model.decoder, PROMPT, 24, stop_ids={stop})) == free[: first + 1]


def test_cache_refuses_to_overflow(model):
    cache = ContiguousCache(model.config, 3, dtype=torch.float32, device=torch.device("cpu"))
    heads = model.config.num_heads + 2 * model.config.num_kv_heads
    angles = torch.zeros(4, model.config.head_dim // 2)
    with pytest.raises(InvalidRequestError, match="holds 3 tokens; 4 were asked for"):
        cache(0, torch.zeros(4, heads, model.config.head_dim), angles, angles)


@pytest.fixture(scope="module")
def llama(tiny_directory):
    return load_model(str(tiny_directory("llama")[0]), dtype="float32", device="cpu")


def test_ids_without_a_token_decode_to_nothing(llama):
    """An embedding padded beyond the tokenizer, as many published models have it."""
    assert llama.config.vocab_size == llama.tokenizer.vocab_size == 128
    assert llama.tokenizer.decode([120]) == ""
    assert Detokenizer(llama.tokenizer).push(120) == ""
    with pytest.raises(InvalidRequestError, match="token id 128 is outside"):
        llama.tokenizer.decode([128])
