"""Tensor parallelism with real processes: the same tokens however computed, and what happens when a process is gone."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import psutil
import pytest
import torch
from typer.testing import CliRunner

from miniserve.cli import app
from miniserve.core.block_pool import BlockPool
from miniserve.core.engine import Engine
from miniserve.core.executor import Scheduled, Step
from miniserve.core.request import Request
from miniserve.core.sampling_params import Limits, SamplingParams
from miniserve.core.scheduler import Scheduler
from miniserve.errors import InvalidRequestError, RankError
from miniserve.llm import LLM
from miniserve.model.generate import generate_cached
from miniserve.model.load import load_model
from miniserve.runtime.member_handle import program
from miniserve.runtime.ranks import MODULE
from support.ranks import kill_in_a_step

PROMPTS = [[5], list(range(3, 24)), [*range(3, 19), 9], [9] * 4, list(range(40, 80))]
NEW, BLOCK = 12, 4
GREEDY = SamplingParams(max_tokens=NEW, ignore_eos=True)
WAYS = {
    "batched": {"prefix_caching": False},
    "chunked": {"prefix_caching": False, "max_num_batched_tokens": 7},
    "cached": {},
    "preempted": {"num_blocks": 15},
}


def open_llm(directory, size=2):
    return LLM(
        str(directory), dtype="float32", device="cpu", block_size=BLOCK, max_model_len=64, kv_cache_memory=2**21,
        tensor_parallel_size=size,
    )  # fmt: skip


def truth(directory):
    model = load_model(str(directory), dtype="float32", device="cpu")
    return [list(generate_cached(model.decoder, prompt, NEW)) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def directory(tiny_directory):
    return tiny_directory("qwen3")[0]


@pytest.fixture(scope="module")
def llm(directory):
    with open_llm(directory) as made:
        yield made


def gone(pids, within_s=20.0):
    """Whether processes end in time."""
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], within_s)
    return not alive


def ranks(parent=None):
    """The ranks that a process has started and that have not ended; without an argument, this process."""
    found = set()
    for child in psutil.Process(parent).children():
        with suppress(psutil.NoSuchProcess):
            if program(MODULE) in child.cmdline():
                found.add(child.pid)
    return found


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_give_the_same_tokens_however_computed(llm, directory, way):
    """One pair of ranks; each way is a scheduler of its own, which only rank 0 has."""
    options = {"num_blocks": 100, "max_num_batched_tokens": 64, "prefix_caching": True} | WAYS[way]
    pool = BlockPool(options.pop("num_blocks"), BLOCK)
    scheduler = Scheduler(pool, max_num_seqs=8, max_model_len=56, **options)
    engine = Engine(scheduler, llm.engine.executor, on_step=lambda _: scheduler.check())
    expected = truth(directory)
    for again in range(2 if way == "cached" else 1):
        requests = [Request(f"{again}-{index}", prompt, Limits(NEW)) for index, prompt in enumerate(PROMPTS)]
        for request in requests:
            engine.add_request(request)
        while engine.has_work:
            engine.step()
        assert [request.output_token_ids for request in requests] == expected
    assert pool.num_free == pool.num_blocks
    assert (engine.metrics.num_preemptions > 0) == (way == "preempted")
    assert (engine.metrics.num_cached_tokens > sum(map(len, PROMPTS)) // 2) == (way == "cached")


def test_log_probabilities_are_those_of_one_rank(llm, directory):
    params = SamplingParams(max_tokens=1, prompt_logprobs=0, logprobs=3)
    found = []
    with open_llm(directory, 1) as alone:
        for each in (llm, alone):
            outputs = each.generate(PROMPTS, params)
            prompts = [entry.logprob for out in outputs for entry in out.prompt_logprobs[1:]]
            top = [logprob for out in outputs for _, logprob in out.outputs[0].logprobs[0].top]
            found.append(torch.tensor(prompts + top))
    assert (found[0] - found[1]).abs().max() < 1e-4


def test_each_rank_holds_half_and_settings_say_so(llm, directory):
    whole = load_model(str(directory), dtype="float32", device="cpu")
    assert llm.settings.tensor_parallel_size == 2
    assert "2 ranks" in str(llm.settings)
    assert llm.model.decoder.layers[0].mlp.down.matrix.nbytes * 2 == whole.decoder.layers[0].mlp.down.matrix.nbytes
    assert llm.settings.kv_cache_bytes == llm.settings.num_blocks * BLOCK * whole.config.kv_bytes_per_token(4) // 2


def test_a_killed_rank_ends_the_step_and_no_process_stays(tiny_directory):
    """A mixture, this time."""
    directory, threads, before = tiny_directory("mixtral")[0], torch.get_num_threads(), ranks()
    llm = open_llm(directory)
    (pid,) = ranks() - before
    assert [out.token_ids for out in llm.generate(PROMPTS, GREEDY)] == truth(directory)
    kill_in_a_step(llm, 1, pid)
    assert gone([pid])
    assert torch.get_num_threads() == threads


def test_ranks_end_with_the_process_that_started_them(directory):
    """Ctrl-C at a terminal, which signals the whole foreground group; and a kill, of which nobody is told."""
    arguments = ["generate", "hello", "--model", str(directory), "--dtype", "float32", "--device", "cpu", "--stream"]
    arguments += ["--tensor-parallel-size", "2", "--ignore-eos", "--max-tokens", "500"]
    command, pipes = [sys.executable, "-m", "miniserve", *arguments], {"stdout": -1, "stderr": -1, "text": True}
    each = {number: subprocess.Popen(command, start_new_session=True, **pipes) for number in (2, 9)}
    for number, process in each.items():
        assert process.stdout.read(1), process.stderr.read()
        pids = ranks(process.pid)
        assert len(pids) == 1
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == {signal.SIGINT: 130, signal.SIGKILL: -9}[number]
        assert "Traceback" not in errors
        assert gone(pids)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
def test_two_gpus(directory):
    """The same over NCCL; there a rank that is killed leaves a kernel waiting, which has to be ended."""
    before = ranks()
    how = {"dtype": "float32", "device": "cuda", "max_model_len": 64, "kv_cache_memory": 2**22}
    with LLM(str(directory), **how, tensor_parallel_size=2) as llm:
        assert [out.token_ids for out in llm.generate(PROMPTS, GREEDY)] == truth(directory)
        (pid,) = ranks() - before
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
        with pytest.raises(RankError, match="was ended by SIGKILL"):
            llm.generate(PROMPTS, GREEDY)


def test_what_is_refused_starts_no_process(directory):
    before = ranks()
    with pytest.raises(InvalidRequestError, match="tensor_parallel_size is 3: it must divide num_kv_heads, which is 2"):
        open_llm(directory, 3)
    with pytest.raises(InvalidRequestError, match="expert_parallel and afd decide how a model is loaded"):
        LLM(load_model(str(directory), device="cpu"), tensor_parallel_size=2)
    options = ["--model", str(directory), "--device", "cpu", "--tensor-parallel-size", "0"]
    result = CliRunner().invoke(app, ["generate", "hello", *options])
    assert "tensor_parallel_size is 0" in str(result.exception)
    assert ranks() == before


def test_a_rank_that_fails_sends_its_traceback(llm):
    """The last test that uses these ranks: they end."""
    before = ranks()
    assert before
    request = Request("bad", [1000], Limits(1))  # beyond the vocabulary, which the engine would not let in
    request.block_table.append(0)
    with pytest.raises(RankError, match=r"(?s)rank 1 .* failed:\nTraceback .*IndexError: index out of range"):
        llm.engine.executor.launch(Step([Scheduled(request, 0, 1)]))
    assert gone(before)
