"""Sampling and stopping of the plain generators, and what `Completion` makes of them."""

import dataclasses
from collections import Counter

import pytest
import torch

from miniserve.errors import InvalidRequestError
from miniserve.model.cache import ContiguousCache
from miniserve.model.completion import Completion
from miniserve.model.generate import generate_cached, generate_naive, greedy, make_sampler
from miniserve.model.load import choose_device, choose_dtype, load_model

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


def test_sampling_with_a_seed_is_the_same_both_ways(model):
    ways = (generate_naive, generate_cached)
    drawn = [list(way(model.decoder, PROMPT, 16, sample=make_sampler(1.0, seed=3))) for way in ways]
    assert drawn[0] == drawn[1]


def test_sampler_draws_from_the_tempered_softmax():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    for temperature in (0.5, 1.0, 2.0):
        sample = make_sampler(temperature, seed=0)
        counts = Counter(sample(logits) for _ in range(8000))
        expected = (logits / temperature).softmax(-1)
        for token, share in enumerate(expected.tolist()):
            # Five standard deviations of a binomial share: fails by chance less than once in a million.
            assert abs(counts[token] / 8000 - share) < 5 * (share * (1 - share) / 8000) ** 0.5


def test_tiny_temperature_tends_to_greedy_without_overflow():
    logits = torch.tensor([1.0, 3.0, 2.999])
    assert {make_sampler(1e-300, seed=s)(logits) for s in range(20)} == {greedy(logits)} == {1}


def test_without_a_seed_draws_differ():
    logits = torch.zeros(1000)
    samplers = [make_sampler(1.0) for _ in range(4)]
    assert len({tuple(sample(logits) for _ in range(8)) for sample in samplers}) == 4


def test_cache_refuses_to_overflow(model):
    cache = ContiguousCache(model.config, 3, dtype=torch.float32, device=torch.device("cpu"))
    rows = torch.zeros(4, model.config.num_kv_heads, model.config.head_dim)
    q = torch.zeros(4, model.config.num_heads, model.config.head_dim)
    with pytest.raises(InvalidRequestError, match="holds 3 tokens; 4 were asked for"):
        cache(0, q, rows, rows)


@pytest.fixture(scope="module")
def llama(tiny_directory):
    return load_model(str(tiny_directory("llama")[0]), dtype="float32", device="cpu")


def test_completion_keeps_eos_out_of_the_text(llama):
    free = list(generate_cached(llama.decoder, PROMPT, 24))
    tokenizer = llama.tokenizer
    tokenizer_with_eos = type("T", (), {})()
    tokenizer_with_eos.eos_token_ids = frozenset({free[6]})
    tokenizer_with_eos.detokenizer = tokenizer.detokenizer
    reply = Completion(dataclasses.replace(llama, tokenizer=tokenizer_with_eos), PROMPT, max_tokens=24)
    pieces = list(reply)
    stop_at = free.index(free[6])
    assert reply.finish_reason == "stop"
    assert reply.token_ids == free[: stop_at + 1]
    assert reply.text == "".join(pieces) == tokenizer.decode(free[:stop_at])
    assert reply.usage == {"prompt_tokens": 4, "completion_tokens": stop_at + 1, "total_tokens": 5 + stop_at}


def test_completion_left_early_is_an_abort(llama):
    reply = Completion(llama, PROMPT, max_tokens=24)
    for _ in reply:
        if len(reply.token_ids) >= 5:
            break
    assert reply.finish_reason == "abort"
    assert len(reply.token_ids) < 24
    assert reply.timings["ttft_s"] > 0


def test_completion_may_fill_the_context_exactly(llama):
    limit = llama.config.max_position_embeddings
    prompt = [5] * (limit - 2)
    reply = Completion(llama, prompt)
    list(reply)
    assert (len(reply.token_ids), reply.finish_reason) in {(2, "length"), (1, "stop"), (2, "stop")}
    with pytest.raises(InvalidRequestError, match=f"max_tokens is 3: .*prompt of {limit - 2} tokens"):
        Completion(llama, prompt, max_tokens=3)
    with pytest.raises(InvalidRequestError, match=f"prompt has {limit} tokens; the model's context holds {limit}"):
        Completion(llama, [5] * limit)


def test_ids_without_a_token_decode_to_nothing(llama):
    """An embedding padded beyond the tokenizer, as many published models have it."""
    assert llama.config.vocab_size == llama.tokenizer.vocab_size == 128
    assert llama.tokenizer.decode([120]) == ""
    assert llama.tokenizer.detokenizer().push(120) == ""
    with pytest.raises(InvalidRequestError, match="token id 128 is outside"):
        llama.tokenizer.decode([128])


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16), ((12, 0), torch.bfloat16)],
)
def test_auto_dtype_goes_by_capability(monkeypatch, capability, expected):
    """A T4 claims bfloat16 support by emulation; its capability says float16."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert choose_dtype("auto", torch.device("cuda")) is expected


def test_auto_on_this_machine():
    device = choose_device("auto")
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_dtype("auto", torch.device("cpu")) is torch.float32
