"""What a request changes of its logits: biases, penalties, and stop tokens that may not come yet."""

import pytest
import torch

from miniserve.runtime.logits import adjust
from support.slow_sampler import INF, choose, request


def test_penalties_by_hand():
    asked = request(
        prompt=[0, 1], output=[2, 3, 3], repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25
    )
    got = adjust(torch.tensor([[4.0, -4.0, 4.0, -4.0, 4.0, -4.0]]), [asked])
    # 0 and 1 are the prompt's: halved, doubled. 2 came once: 4/2 - 0.5 - 0.25. 3 came twice: -4·2 - 0.5 - 0.5.
    assert got.tolist() == [[2.0, -8.0, 1.25, -9.0, 4.0, -4.0]]


def test_presence_and_frequency_leave_the_prompt_alone():
    logits = torch.tensor([[1.0, 1.0]])
    for asked in (request(prompt=[0, 0], presence_penalty=2.0), request(prompt=[0, 0], frequency_penalty=2.0)):
        assert adjust(logits, [asked]).tolist() == [[1.0, 1.0]]
        asked.token_ids += [1]
        assert adjust(logits, [asked]).tolist() == [[1.0, -1.0]]


def test_bias_comes_before_the_penalties():
    asked = request(prompt=[0], repetition_penalty=2.0, logit_bias={0: 2.0})
    assert adjust(torch.tensor([[-1.0, 0.0]]), [asked]).tolist() == [[0.5, 0.0]]


def test_a_vanishing_penalty_stays_finite():
    assert choose([1.0, 2.0], request(prompt=[0], repetition_penalty=1e-300)) == [0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_bias_of_a_hundred_forces_and_forbids(temperature):
    logits = [1.0, 5.0, 2.0, 4.0]
    many = range(50)
    force = choose(logits, *(request(temperature=temperature, seed=s, logit_bias={2: 100}) for s in many))
    assert set(force) == {2}
    forbid = choose(logits, *(request(temperature=temperature, seed=s, logit_bias={1: -100, 3: -100.0}) for s in many))
    assert set(forbid) <= {0, 2}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_min_tokens_forbids_stopping_until_they_have_come(temperature):
    logits = [1.0, 50.0, 40.0, 0.0]
    asked = {"temperature": temperature, "min_tokens": 2, "stop": [1, 2, 77]}
    early = choose(logits, request(**asked), request(output=[0], **asked))
    assert set(early) <= {0, 3}
    assert choose(logits, request(output=[0, 0], **asked)) == [1]


def test_min_tokens_does_not_forbid_everything():
    stuck = request(min_tokens=2, stop=[1, 2])
    free = request(min_tokens=2, stop=[2])
    assert choose([[-INF, 1.0, 2.0], [-INF, 1.0, 2.0]], stuck, free) == [2, 1]


def test_nobody_asks_nothing_is_copied():
    logits = torch.zeros(2, 3)
    assert adjust(logits, [request(), request(min_tokens=5)]) is logits  # no stop token: nothing to forbid
