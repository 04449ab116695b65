"""What an engine is built with, where that hangs on the backend."""

from dataclasses import replace

import pytest
import torch

from miniserve.errors import InvalidRequestError
from miniserve.model.load import load_model
from miniserve.options import EngineOptions, Speculation
from miniserve.runtime import trial
from miniserve.settings import EngineSettings

OPTIONS = EngineOptions(
    max_model_len=64,
    max_num_batched_tokens=None,
    max_num_seqs=4,
    block_size=16,
    kv_cache_memory=2**22,
    kv_cache_dtype="auto",
    memory_fraction=None,
    prefix_caching=True,
    cuda_graphs=False,
    speculation=None,
    overlap=None,
)


def decide(model, draft=None, **options):
    return EngineSettings.decide(model, replace(OPTIONS, **options), draft=draft)


def with_memory(model, free, step, monkeypatch, device="cuda", **options):
    """Settings on a machine that says how much is free, and what the largest step takes."""
    asked = []
    monkeypatch.setattr(trial, "free_memory", lambda device: free)
    monkeypatch.setattr(trial, "step_bytes", lambda decoder, *sizes: asked.append(sizes[:3]) or step)
    model.decoder.device = torch.device(device)
    return decide(model, **{"kv_cache_memory": None, "max_num_seqs": 1000} | options), asked


def test_on_a_gpu_the_cache_gets_its_share_of_what_a_step_leaves(on_triton, monkeypatch):
    block = 16 * on_triton.config.kv_bytes_per_token(on_triton.decoder.dtype.itemsize)
    decided, asked = with_memory(on_triton, 1000 * block, 200 * block, monkeypatch, memory_fraction=0.5)
    assert decided.num_blocks == 400
    assert asked == [(16, 8192, 1000)]
    decided, asked = with_memory(on_triton, 1000 * block, 0, monkeypatch, kv_cache_memory=7 * block)
    assert (decided.num_blocks, asked) == (7, [])
    decided, asked = with_memory(on_triton, 1000 * block, 0, monkeypatch, "cpu", memory_fraction=0.5)
    assert (decided.num_blocks, asked) == (500, [])


def test_a_step_that_leaves_nothing_to_the_cache(on_triton, monkeypatch):
    with pytest.raises(InvalidRequestError, match=r"KV cache may take 0.0 MiB, which holds 0 tokens"):
        with_memory(on_triton, 2**30, 2**31, monkeypatch)


@pytest.fixture
def on_triton(tiny_directory):
    """A model that says its backend is Triton; settings ask no more than that."""
    model = load_model(str(tiny_directory("llama")[0]), device="cpu", backend="torch")
    return replace(model, choices=replace(model.choices, backend="triton"))


@pytest.mark.parametrize("asked", [True, False])
def test_graphs_where_kernels_never_wait(on_triton, asked):
    assert decide(on_triton, cuda_graphs=asked).cuda_graphs == asked
    plain = replace(on_triton, choices=replace(on_triton.choices, backend="torch"))
    assert not decide(plain, cuda_graphs=asked).cuda_graphs


@pytest.mark.parametrize(("graphs", "asked", "given"), [(True, None, True), (True, False, False), (False, None, False)])
def test_steps_overlap_with_graphs(on_triton, graphs, asked, given):
    decided = decide(on_triton, cuda_graphs=graphs, overlap=asked)
    assert decided.overlap is given


def test_overlap_without_graphs_is_refused(on_triton):
    with pytest.raises(InvalidRequestError, match="overlap is True: it needs CUDA graphs"):
        decide(on_triton, overlap=True)


def test_a_block_size_that_the_kernels_do_not_take(on_triton):
    with pytest.raises(
        InvalidRequestError, match="block_size is 24: with the Triton kernels it must be a multiple of 16"
    ):
        decide(on_triton, block_size=24)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ngram", Speculation(4, None)),
        ("ngram:7", Speculation(7, None)),
        ("org/small", Speculation(4, "org/small")),
        ("/a:b/model.gguf:2", Speculation(2, "/a:b/model.gguf")),
        ("/a:b", Speculation(4, "/a:b")),
    ],
)
def test_speculation_by_name(text, expected):
    assert Speculation.parse(text) == expected


@pytest.mark.parametrize("text", ["ngram:0", "ngram:33", "", ":3"])
def test_speculation_that_is_refused(text):
    with pytest.raises(InvalidRequestError, match=f"speculation is '{text}'"):
        Speculation.parse(text)


def test_the_memory_holds_as_many_blocks_of_the_draft_model(on_triton):
    block = 16 * on_triton.config.kv_bytes_per_token(on_triton.decoder.dtype.itemsize)
    decided = decide(on_triton, draft=on_triton, kv_cache_memory=9 * block, speculation=Speculation(4, "itself"))
    assert (decided.num_blocks, decided.kv_cache_bytes) == (4, 8 * block)


def test_a_draft_model_of_another_vocabulary_or_a_shorter_context_is_refused(on_triton):
    def with_draft(**changed):
        draft = replace(on_triton, config=replace(on_triton.config, **changed))
        decide(on_triton, draft=draft, speculation=Speculation(4, "draft"))

    with pytest.raises(
        InvalidRequestError, match=r"draft model .*llama0 has a vocabulary of 7 tokens; .*llama0 has one of 128"
    ):
        with_draft(vocab_size=7)
    with pytest.raises(InvalidRequestError, match="has a context of 32 tokens; max_model_len is 64"):
        with_draft(max_position_embeddings=32)
