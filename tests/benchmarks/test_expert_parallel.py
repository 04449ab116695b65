"""What the benchmark of expert parallelism counts: bytes as the formula has them, and the busiest rank's share."""

import importlib
from pathlib import Path

import pytest
import torch

from miniserve.model.config import ModelConfig, MoE, Rope
from miniserve.model.expert_parallel import ExpertExchange
from support.thread_ranks import ThreadRanks

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture
def load(monkeypatch):
    """`load(name)`: a module of the benchmarks."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.mark.parametrize("size", [2, 4])
def test_bytes_of_an_even_router_are_those_of_the_formula(load, size):
    """2,000 tokens a rank whose experts are drawn evenly, measured on every rank."""
    script = load("expert_parallel")
    tokens, hidden, experts, choices = 2000 * size, 8, 8, 2
    config = ModelConfig("llama", 100, hidden, 1, 4, 4, 2, 16, 100, 1e-5, Rope(1e4), moe=MoE(8, 2, 16, True))
    generator = torch.Generator().manual_seed(1)
    ids = torch.rand(tokens, experts, generator=generator).argsort(-1)[:, :choices]
    held = [range(rank * experts // size, (rank + 1) * experts // size) for rank in range(size)]
    x = torch.arange(tokens).float()[:, None].expand(-1, hidden)

    def compute(communicator):
        metered = script.Meter(communicator)
        exchange = ExpertExchange(held, experts, metered, CPU)
        weights = torch.ones(2000, choices)
        exchange(
            x, torch.zeros(tokens, 1, dtype=torch.bool), lambda x, _: (weights, ids[x[:, 0].long()]), lambda x, _: x
        )
        return metered

    expected = script.expected_bytes(config, size, 4)
    for metered in ThreadRanks(size).run(compute):
        assert metered.tokens == 2000
        assert metered.bytes["counts"] == 16 * (size - 1)
        for kind, per_token in expected.items():
            assert metered.bytes[kind] / metered.tokens == pytest.approx(per_token, rel=0.05)


def test_copies_even_out_what_one_expert_drew_to_one_rank(load):
    """Every token wants expert 0: one rank answers all; with a copy on each, all answer as many."""
    balance = load("expert_balance")
    ids = torch.zeros(512, 1, dtype=torch.int64)
    alone = balance.answers_by_rank(ids, [[0], [1], [2], [3]], 4)
    everywhere = balance.answers_by_rank(ids, [[0], [0, 1], [0, 2], [0, 3]], 4)
    assert alone.tolist() == [[256, 0, 0, 0]] * 2
    assert everywhere.tolist() == [[64, 64, 64, 64]] * 2
    assert balance.imbalances(alone) == {"whole": 4, "steps": 4}
    assert balance.imbalances(everywhere) == {"whole": 1, "steps": 1}
    assert balance.imbalances(torch.tensor([[2.0, 0.0], [0.0, 2.0]])) == {"whole": 1, "steps": 2}


def test_only_whole_windows_of_a_text_are_read(load):
    assert list(load("expert_balance").windows(list(range(7)), 3)) == [[0, 1, 2], [3, 4, 5]]
