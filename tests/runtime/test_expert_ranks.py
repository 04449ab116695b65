"""Expert parallelism with real processes: the same tokens, and what happens when a rank is gone. Some 20 s of CPU."""

import json
import os
import signal
import threading
import time

import psutil
import pytest
import torch
from typer.testing import CliRunner

from miniserve.cli import app
from miniserve.core.sampling_params import SamplingParams
from miniserve.errors import InvalidRequestError, RankError
from miniserve.llm import LLM
from miniserve.model.generate import generate_cached
from miniserve.model.load import load_model
from miniserve.runtime.member_handle import program
from miniserve.runtime.ranks import MODULE

PROMPTS = [[5], list(range(3, 24)), [9] * 4, list(range(40, 80))]
NEW = 10
GREEDY = SamplingParams(max_tokens=NEW, ignore_eos=True)


def open_llm(directory, size, **how):
    return LLM(
        str(directory), dtype="float32", device="cpu", block_size=4, max_model_len=64, kv_cache_memory=2**21,
        max_num_batched_tokens=24, tensor_parallel_size=size, expert_parallel=True, **how,
    )  # fmt: skip


def others():
    """The ranks that this process has started, in their order."""
    children = psutil.Process().children()
    return sorted(child.pid for child in children if program(MODULE) in child.cmdline())


@pytest.fixture(scope="module")
def directory(tiny_directory):
    return tiny_directory("qwen3_moe")[0]


@pytest.fixture(scope="module")
def expected(directory):
    model = load_model(str(directory), dtype="float32", device="cpu")
    return [list(generate_cached(model.decoder, prompt, NEW)) for prompt in PROMPTS]


def tokens(llm):
    """All prompts at once, in chunks; then one alone, whose steps have fewer tokens than there are ranks."""
    together = [out.token_ids for out in llm.generate(PROMPTS, GREEDY)]
    (alone,) = llm.generate(PROMPTS[:1], GREEDY)
    return [*together, alone.token_ids]


def test_two_ranks_with_copies_of_busy_experts_give_the_same_tokens(directory, expected, tmp_path):
    loads = tmp_path / "loads.json"
    loads.write_text(json.dumps([[9, 1, 1, 1, 1, 1, 1, 5]] * 3))
    with open_llm(directory, 2, redundant_experts=2, expert_loads=loads) as llm:
        assert tokens(llm) == [*expected, expected[0]]
        assert all(0 in held for held in llm.model.decoder.experts.layers[0])
        assert "2 ranks with whole experts" in str(llm.settings)
    assert not others()


def test_four_ranks_give_the_same_tokens_until_one_is_killed(directory, expected):
    """Rank 2 is stopped, so that a step waits for it, and killed in the middle of that step."""
    llm = open_llm(directory, 4)
    pids = others()
    assert len(pids) == 3
    assert tokens(llm) == [*expected, expected[0]]
    os.kill(pids[1], signal.SIGSTOP)
    threading.Timer(0.3, os.kill, (pids[1], signal.SIGKILL)).start()
    started = time.monotonic()
    with pytest.raises(RankError, match=rf"rank 2 \(process {pids[1]}\) was ended by SIGKILL"):
        llm.generate(PROMPTS, GREEDY)
    assert time.monotonic() - started < 10
    assert llm.engine.scheduler.pool.num_free == llm.engine.scheduler.pool.num_blocks
    with pytest.raises(RankError, match="SIGKILL\nNothing more can be computed with these ranks"):
        llm.generate(PROMPTS, GREEDY)
    llm.close()
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], 20)
    assert not alive


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
def test_two_gpus(directory, expected):
    """The same over NCCL, where the host waits for counts that a rank which is gone will not send."""
    how = {"dtype": "float32", "device": "cuda", "max_model_len": 64, "kv_cache_memory": 2**22}
    with LLM(str(directory), **how, tensor_parallel_size=2, expert_parallel=True, redundant_experts=2) as llm:
        assert tokens(llm) == [*expected, expected[0]]
        (pid,) = others()
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
        with pytest.raises(RankError, match="was ended by SIGKILL"):
            llm.generate(PROMPTS, GREEDY)


def test_what_is_refused_starts_no_process(directory, tiny_directory):
    for family, size, how, message in (
        ("qwen3", 2, {}, "expert_parallel: this qwen3 model is dense, it has no experts"),
        ("qwen3_moe", 16, {}, "8 experts are too few for 16 ranks"),
        ("qwen3_moe", 4, {"redundant_experts": 2}, "redundant_experts 2 make 10 slots: they cannot be shared out"),
        ("qwen3_moe", 2, {"expert_loads": "/no/such/file"}, "expert_loads /no/such/file: .*No such file"),
        ("qwen3_moe", 1, {}, "tensor_parallel_size, which is 1, must be more"),
    ):
        with pytest.raises(InvalidRequestError, match=message):
            open_llm(tiny_directory(family)[0], size, **how)
    options = ["--model", str(directory), "--device", "cpu", "--redundant-experts", "2"]
    result = CliRunner().invoke(app, ["generate", "hello", *options])
    assert "redundant_experts and expert_loads go with expert_parallel only" in str(result.exception)
    options = ["--model", str(directory), "--device", "cpu", "--expert-parallel"]
    result = CliRunner().invoke(app, ["generate", "hello", *options])
    assert "tensor_parallel_size, which is 1, must be more" in str(result.exception)
    assert not others()
