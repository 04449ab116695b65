"""What tests of ranks share: engines whose ranks are processes, what they should say, and one that is killed."""

import os
import signal
import threading
import time

import psutil
import pytest

from miniserve.core.sampling_params import SamplingParams
from miniserve.errors import RankError
from miniserve.llm import LLM
from miniserve.model.generate import generate_cached
from miniserve.model.load import load_model
from miniserve.runtime.member_handle import program

PROMPTS = [[5], list(range(3, 24)), [9] * 4, list(range(40, 80))]
NEW = 10
GREEDY = SamplingParams(max_tokens=NEW, ignore_eos=True)


def open_llm(directory, **how):
    return LLM(
        str(directory), dtype="float32", device="cpu", block_size=4, max_model_len=64, kv_cache_memory=2**21,
        max_num_batched_tokens=24, **how,
    )  # fmt: skip


def others(module):
    """The ranks that this process has started, in their order; `module` is their program."""
    children = psutil.Process().children()
    return sorted(child.pid for child in children if program(module) in child.cmdline())


def truth(directory):
    """Each prompt's tokens, by the decoder alone, and the first one's again."""
    model = load_model(str(directory), dtype="float32", device="cpu")
    tokens = [list(generate_cached(model.decoder, prompt, NEW)) for prompt in PROMPTS]
    return [*tokens, tokens[0]]


def tokens(llm):
    """All prompts at once, in chunks; then one alone, whose steps have fewer tokens than batches or ranks."""
    together = [out.token_ids for out in llm.generate(PROMPTS, GREEDY)]
    (alone,) = llm.generate(PROMPTS[:1], GREEDY)
    return [*together, alone.token_ids]


def kill_in_a_step(llm, rank, pid):
    """The rank is stopped, so that a step waits for it, and killed in the middle of that step: an error, and no leak."""
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
    started = time.monotonic()
    with pytest.raises(RankError, match=rf"rank {rank} \(process {pid}\) was ended by SIGKILL"):
        llm.generate(PROMPTS, GREEDY)
    assert time.monotonic() - started < 10
    assert llm.engine.scheduler.pool.num_free == llm.engine.scheduler.pool.num_blocks
    with pytest.raises(RankError, match="SIGKILL\nNothing more can be computed with these ranks"):
        llm.generate(PROMPTS, GREEDY)
    llm.close()
