"""How large the cache becomes, and the refusals with their numbers."""

import pytest
import torch

from miniserve.errors import InvalidRequestError
from miniserve.model.config import ModelConfig, Rope
from miniserve.runtime.kv_cache import KVCache, block_bytes, choose_size, free_memory

CONFIG = ModelConfig(
    "llama", 100, 64, 3, 4, 2, 16, 96, max_position_embeddings=100, rms_norm_eps=1e-5, rope=Rope(10000.0)
)
TOKEN = 2 * 3 * 2 * 16 * 4  # K and V, layers, heads, dim, bytes


def size(**options):
    defaults = {"block_size": 16, "dtype": torch.float32, "memory_bytes": 2**20, "max_num_seqs": 4}
    return choose_size(CONFIG, **(defaults | options))


def test_block_bytes_is_what_the_tensors_take():
    cache = KVCache(CONFIG, 5, 16, dtype=torch.float32, device=torch.device("cpu"))
    held = sum(tensor.nbytes for layer in range(3) for tensor in cache.layer(layer))
    assert held == 5 * block_bytes(CONFIG, 16, torch.float32) == 5 * 16 * TOKEN
    assert cache.layer(2)[0].shape == (5, 16, 2, 16)


def test_as_many_blocks_as_fit_and_no_more_than_can_be_used():
    assert size(memory_bytes=10 * 16 * TOKEN + 5) == (10, 100)
    assert size() == (28, 100)  # four requests of 100 tokens need seven blocks each
    assert size(max_num_seqs=1) == (7, 100)
    assert size(max_model_len=33, max_num_seqs=1) == (3, 33)


def test_half_the_bytes_hold_twice_the_tokens():
    assert size(memory_bytes=10 * 16 * TOKEN, dtype=torch.bfloat16, max_num_seqs=99).num_blocks == 20


def test_the_default_length_is_what_fits():
    assert size(memory_bytes=3 * 16 * TOKEN) == (3, 48)


def test_a_length_that_cannot_fit_is_refused_with_the_numbers():
    with pytest.raises(InvalidRequestError) as caught:
        size(memory_bytes=5 * 16 * TOKEN, max_model_len=97)
    message = str(caught.value)
    for part in ("max_model_len 97", "7 KV blocks of 16", "which holds 80 tokens", "0.1 MiB"):
        assert part in message
    with pytest.raises(InvalidRequestError, match="holds 0 tokens"):
        size(memory_bytes=100)


def test_a_length_the_model_is_not_made_for_is_refused():
    for length in (101, 0, -4):
        with pytest.raises(
            InvalidRequestError, match=f"max_model_len is {length}: this model's context holds 1 to 100"
        ):
            size(max_model_len=length)


def test_free_memory_is_a_number_of_bytes_that_could_be():
    assert 2**24 < free_memory(torch.device("cpu")) < 2**46
