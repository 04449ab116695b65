"""Engines in two parts, with real processes: the same tokens; what is seen of their turns; a rank that is gone.

Some 20 s of CPU.
"""

import os
import signal
import threading
import time

import psutil
import pytest

from miniserve.core.sampling_params import SamplingParams
from miniserve.errors import InvalidRequestError, RankError
from miniserve.fleet.afd.ranks import MODULE
from miniserve.fleet.afd.spans import read_spans
from miniserve.llm import LLM
from miniserve.model.generate import generate_cached
from miniserve.model.load import load_model
from miniserve.runtime.member_handle import program

PROMPTS = [[5], list(range(3, 24)), [9] * 4, list(range(40, 80))]
NEW = 10
GREEDY = SamplingParams(max_tokens=NEW, ignore_eos=True)


def open_llm(directory, afd, **how):
    return LLM(
        str(directory), dtype="float32", device="cpu", block_size=4, max_model_len=64, kv_cache_memory=2**21,
        max_num_batched_tokens=24, afd=afd, **how,
    )  # fmt: skip


def others():
    """The ranks that this process has started, in their order."""
    children = psutil.Process().children()
    return sorted(child.pid for child in children if program(MODULE) in child.cmdline())


@pytest.fixture(scope="module")
def expected(tiny_directory):
    """`expected(family)`: each prompt's tokens."""

    def get(family):
        model = load_model(str(tiny_directory(family)[0]), dtype="float32", device="cpu")
        return [list(generate_cached(model.decoder, prompt, NEW)) for prompt in PROMPTS]

    return get


def tokens(llm):
    """All prompts at once, in chunks; then one alone, whose steps have fewer tokens than batches."""
    together = [out.token_ids for out in llm.generate(PROMPTS, GREEDY)]
    (alone,) = llm.generate(PROMPTS[:1], GREEDY)
    return [*together, alone.token_ids]


def test_the_same_tokens_in_batches_that_take_turns(tiny_directory, expected, tmp_path):
    """Of a dense model: while one batch is on the other side, attention is computed for another: each rank records it."""
    right = expected("qwen3")
    with open_llm(tiny_directory("qwen3")[0], "1x2", afd_batches=3, afd_trace=tmp_path) as llm:
        assert tokens(llm) == [*right, right[0]]
        assert "feed-forward parts apart" in str(llm.settings)
        layers = llm.model.config.num_layers
    assert not others()
    spans = read_spans(tmp_path)
    assert {span.rank for span in spans} == {0, 1, 2}
    for step in {span.step for span in spans}:
        here = [span for span in spans if span.step == step and span.what == "attention"]
        turns = [(layer, batch) for layer in range(layers) for batch in range(1 + max(span.batch for span in here))]
        assert [(span.layer, span.batch) for span in here] == turns
        by_turn = {(span.layer, span.batch): span for span in here}
        for rank in (1, 2):
            there = [span for span in spans if (span.step, span.rank, span.what) == (step, rank, "feed-forward")]
            assert [(span.layer, span.batch) for span in there] == turns
            for span in there:  # never before it was sent, nor begun after it was needed
                assert span.end_s > by_turn[span.layer, span.batch].begin_s
                if span.layer + 1 < layers:
                    assert span.begin_s < by_turn[span.layer + 1, span.batch].begin_s


@pytest.mark.parametrize(
    ("family", "afd", "killed"), [("qwen3_moe", "2x2", 3), ("llama", "2x1", 1)], ids=["feed-forward", "attention"]
)
def test_the_same_tokens_until_a_rank_is_killed(family, afd, killed, tiny_directory, expected):
    """It is stopped, so that a step waits for it, and killed in the middle of that step."""
    right = expected(family)
    llm = open_llm(tiny_directory(family)[0], afd)
    assert tokens(llm) == [*right, right[0]]
    pid = others()[killed - 1]
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
    started = time.monotonic()
    with pytest.raises(RankError, match=rf"rank {killed} \(process {pid}\) was ended by SIGKILL"):
        llm.generate(PROMPTS, GREEDY)
    assert time.monotonic() - started < 10
    assert llm.engine.scheduler.pool.num_free == llm.engine.scheduler.pool.num_blocks
    with pytest.raises(RankError, match="SIGKILL\nNothing more can be computed with these ranks"):
        llm.generate(PROMPTS, GREEDY)
    llm.close()
    assert not others()


def test_what_is_refused_starts_no_process(tiny_directory):
    for family, afd, how, message in (
        ("llama", "1x", {}, "afd is '1x': it must be two numbers such as 1x2"),
        ("llama", "0x1", {}, "there must be 1 of each at least"),
        ("llama", "1x1", {"afd_batches": 0}, "with 0 batches: there must be 1 of each at least"),
        ("llama", "64x1", {}, "afd: 64 ranks of attention: it must divide num_kv_heads"),
        ("llama", "1x7", {}, "afd: 7 ranks of feed-forward: it must divide intermediate_size"),
        ("qwen3_moe", "1x16", {}, "8 experts are too few for 16 ranks"),
        ("llama", "1x1", {"tensor_parallel_size": 2}, "it does not go with tensor_parallel_size, which is 2"),
        ("llama", None, {"afd_trace": "here"}, "it goes with afd"),
    ):
        with pytest.raises(InvalidRequestError, match=message):
            open_llm(tiny_directory(family)[0], afd, **how)
    assert not others()
