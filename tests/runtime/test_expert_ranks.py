"""Expert parallelism with real processes: the same tokens, and what happens when a rank is gone. Some 20 s of CPU."""

import json
import os
import signal
import threading

import psutil
import pytest
import torch
from typer.testing import CliRunner

from miniserve.cli import app
from miniserve.errors import InvalidRequestError, RankError
from miniserve.llm import LLM
from miniserve.runtime.ranks import MODULE
from support import ranks
from support.ranks import GREEDY, PROMPTS, kill_in_a_step, others, tokens, truth


def open_llm(directory, size, **how):
    return ranks.open_llm(directory, tensor_parallel_size=size, expert_parallel=True, **how)


@pytest.fixture(scope="module")
def directory(tiny_directory):
    return tiny_directory("qwen3_moe")[0]


@pytest.fixture(scope="module")
def expected(directory):
    return truth(directory)


def test_two_ranks_with_copies_of_busy_experts_give_the_same_tokens(directory, expected, tmp_path):
    loads = tmp_path / "loads.json"
    loads.write_text(json.dumps([[9, 1, 1, 1, 1, 1, 1, 5]] * 3))
    with open_llm(directory, 2, redundant_experts=2, expert_loads=loads) as llm:
        assert tokens(llm) == expected
        assert all(0 in held for held in llm.model.decoder.experts.layers[0])
        assert "2 ranks with whole experts" in str(llm.settings)
    assert not others(MODULE)


def test_four_ranks_give_the_same_tokens_until_one_is_killed(directory, expected):
    llm = open_llm(directory, 4)
    pids = others(MODULE)
    assert len(pids) == 3
    assert tokens(llm) == expected
    kill_in_a_step(llm, 2, pids[1])
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], 20)
    assert not alive


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
def test_two_gpus(directory, expected):
    """The same over NCCL, where the host waits for counts that a rank which is gone will not send."""
    how = {"dtype": "float32", "device": "cuda", "max_model_len": 64, "kv_cache_memory": 2**22}
    with LLM(str(directory), **how, tensor_parallel_size=2, expert_parallel=True, redundant_experts=2) as llm:
        assert tokens(llm) == expected
        (pid,) = others(MODULE)
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
    assert not others(MODULE)
