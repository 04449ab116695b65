"""The trial step: the largest there is, finite, and measured around the runner's own step."""

import pytest
import torch

from miniserve.core.sampling_params import SamplingParams
from miniserve.errors import InvalidRequestError
from miniserve.llm import LLM
from miniserve.model.load import load_model
from miniserve.runtime import trial
from miniserve.runtime.model_runner import ModelRunner


@pytest.fixture
def decoder(tiny_directory):
    return load_model(str(tiny_directory("llama")[0]), device="cpu", backend="torch").decoder


@pytest.mark.parametrize(
    ("tokens", "seqs", "lengths"),
    [(10, 4, [3, 3, 2, 2]), (3, 8, [1, 1, 1]), (8192, 2, [512, 512])],  # the model's context holds 512
)
def test_the_largest_step_is_computed_between_two_looks_at_memory(decoder, monkeypatch, tokens, seqs, lengths):
    seen, launch = [], ModelRunner.launch
    monkeypatch.setattr(
        ModelRunner, "launch", lambda self, step: seen.append((step, computed := launch(self, step))) or computed
    )

    def probe(run):
        assert not seen
        run()
        return 1234

    assert trial.step_bytes(decoder, 16, tokens, seqs, probe) == 1234
    ((step, computed),) = seen
    result = computed.result()
    assert [part.num_tokens for part in step.scheduled] == lengths
    assert [len(each) for each in result.tokens] == [1] * len(lengths)
    assert result.prompt_logprobs.keys() == result.logprobs.keys() == set(range(len(lengths)))


def test_a_step_that_memory_cannot_hold_names_its_size(decoder):
    def probe(run):
        raise torch.OutOfMemoryError

    with pytest.raises(InvalidRequestError, match="max_num_batched_tokens is 64 and max_num_seqs 4"):
        trial.step_bytes(decoder, 16, 64, 4, probe)


NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@NEEDS_GPU
def test_the_peak_is_what_was_allocated_at_once():
    device = torch.device("cuda")
    kept = torch.empty(2**22, dtype=torch.uint8, device=device)

    def run():
        torch.empty(2**25, dtype=torch.uint8, device=device)
        torch.empty(2**24, dtype=torch.uint8, device=device)

    assert trial.cuda_peak(device)(run) == 2**25
    assert len(kept) == 2**22


@NEEDS_GPU
def test_no_step_takes_more_than_the_trial(tiny_directory):
    model, device = load_model(str(tiny_directory("llama")[0]), device="cuda"), torch.device("cuda")
    taken = trial.step_bytes(model.decoder, 16, 1024, 4, trial.cuda_peak(device))
    params = SamplingParams(max_tokens=3, temperature=1.0, top_p=0.9, logprobs=5)
    with LLM(model, kv_cache_memory=2**24, block_size=16, max_num_seqs=4, max_num_batched_tokens=1024) as llm:
        assert trial.cuda_peak(device)(lambda: llm.generate([[5] * 256] * 4, params)) <= taken
