"""Steps launched before the results of the last are known, with the real runner: the same tokens as one after the other.

On a CPU nothing overlaps, but every pending token takes the same way: from what the step before chose, never from the
host.
"""

import pytest
import torch

from miniserve.core.executor import Scheduled, Step
from miniserve.core.request import Request
from miniserve.core.sampling_params import Limits, SamplingParams
from miniserve.llm import LLM
from miniserve.model.load import load_model
from miniserve.runtime.batch import Batch
from miniserve.runtime.in_flight import Chosen
from miniserve.runtime.model_runner import ModelRunner
from miniserve.runtime.newest import Newest

CPU = torch.device("cpu")
PROMPTS = [[(7 * i + 3 * at) % 120 + 3 for at in range(length)] for i, length in enumerate([1, 5, 16, 17, 31, 40])]
PARAMS = {
    "greedy": [SamplingParams(max_tokens=15)] * 6,
    "drawn": [SamplingParams(max_tokens=9 + i, temperature=1.5, seed=i, min_p=0.01 * i) for i in range(6)],
    "mixed": [
        SamplingParams(max_tokens=12),
        SamplingParams(max_tokens=14, temperature=1.0, seed=1),
        SamplingParams(max_tokens=6, temperature=1.0, seed=2, top_p=0.8, top_k=20),
        SamplingParams(max_tokens=5, repetition_penalty=1.7, presence_penalty=0.5),
        SamplingParams(max_tokens=6, min_tokens=4, stop_token_ids=list(range(60)), logprobs=2),
        SamplingParams(max_tokens=6, prompt_logprobs=1, logit_bias={5: 3.0}),
    ],
}


@pytest.fixture(scope="module")
def model(tiny_directory):
    return load_model(str(tiny_directory("llama")[0]), device="cpu", dtype="float32", backend="torch")


def outputs(model, params, blocks, *, ahead):
    """Tokens, ends and ranks, and the number of steps with a pending token."""
    with LLM(
        model, kv_cache_memory=blocks * 4 * model.config.kv_bytes_per_token(4), block_size=4, max_num_seqs=4,
        max_num_batched_tokens=24, max_model_len=60,
    ) as llm:  # fmt: skip
        engine = llm.engine
        eager, newest = engine.executor, Newest(4, CPU) if ahead else None
        runner = engine.executor = ModelRunner(eager.decoder, eager.cache, eager.block_size, newest=newest)
        engine.on_step = lambda _: engine.scheduler.check()
        pending, launch = [], runner.launch
        runner.launch = lambda step: pending.append(any(p.is_pending for p in step.scheduled)) or launch(step)
        firsts = [each.outputs[0] for each in llm.generate(PROMPTS, params)]
        ranks = [[(each.token_id, each.rank) for each in first.logprobs or ()] for first in firsts]
        found = [(first.token_ids, first.finish_reason) for first in firsts], ranks
        assert not llm.has_work
        assert all(not view.holders for view in llm.blocks())
        return found, sum(pending)


@pytest.mark.parametrize("which", PARAMS)
@pytest.mark.parametrize("blocks", [24, 200])
def test_the_same_tokens_as_one_step_after_the_other(model, which, blocks):
    plain, none = outputs(model, PARAMS[which], blocks, ahead=False)
    ahead, some = outputs(model, PARAMS[which], blocks, ahead=True)
    assert none == 0
    assert some > 0
    assert ahead == plain


def test_a_pending_token_comes_from_the_row_that_chose_it():
    newest, step = Newest(4, CPU), Step()
    requests = [Request(name, [1, 2], Limits(9)) for name in "abc"]
    newest.keep(requests, torch.tensor([40, -1, 42]))
    for request, start in zip(reversed(requests), (2, 2, 0), strict=True):
        request.block_table.extend([0])
        step.scheduled.append(Scheduled(request, start, 1 if start else 2))
    batch = Batch.from_step(step, 4, CPU, newest)
    assert batch.token_ids.tolist() == [42, 0, 1, 2], "what failed is any token; a known one is itself"


def test_unsound_logits_fail_the_step_when_its_result_is_asked_for():
    chosen = Chosen(torch.tensor([-1]), [Request("a", [1], Limits(2))], [True])
    with pytest.raises(RuntimeError, match="request a: its logits hold NaN"):
        chosen.result()


def test_tokens_are_taken_before_they_are_overwritten():
    tokens = torch.tensor([7, 8])
    chosen = Chosen(tokens, [Request(name, [1], Limits(2)) for name in "ab"], [True, False, True])
    tokens.zero_()
    assert chosen.result().tokens == [(7,), (), (8,)]
