"""Synthetic workloads have the figures they are said to have; recorded ones, exactly those that were published."""

import os
import random
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from miniserve.errors import InvalidRequestError
from miniserve.workloads.presets import BLOCK_SIZE, PRESETS, ended, prefix_reuse, preset, with_turns
from miniserve.workloads.traces import read_trace

DATA = Path(os.environ.get("MINISERVE_DATA", Path(__file__).parents[3] / "shared" / "data"))


def recorded(name):
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"needs {name} in MINISERVE_DATA")
    return list(read_trace(path))


@pytest.mark.parametrize(
    ("name", "file"),
    [("azure-conv", "AzureLLMInferenceTrace_conv.csv"), ("azure-code", "AzureLLMInferenceTrace_code.csv")],
)
def test_drawn_like_the_recorded_one(name, file):
    real, drawn = recorded(file), list(islice(preset(name, random.Random(0)), 20_000))
    for field in ("prompt_tokens", "output_tokens"):
        for rank in (50, 90):
            expected = np.percentile([getattr(arrival, field) for arrival in real], rank)
            found = np.percentile([getattr(arrival, field) for arrival in drawn], rank)
            assert found == pytest.approx(expected, rel=0.05, abs=1.5), (field, rank)
    rates = [len(some) / some[-1].at_s for some in (real, drawn)]
    assert rates[1] == pytest.approx(rates[0], rel=0.3 if name == "azure-code" else 0.05)
    gaps = [np.diff([arrival.at_s for arrival in some]) for some in (real, drawn)]
    variations = [each.std() / each.mean() for each in gaps]
    assert variations[1] == pytest.approx(variations[0], rel=0.25)


def test_mooncake_s_reuse_is_the_published_one():
    assert prefix_reuse(iter(recorded("mooncake_conversation_trace.jsonl"))) == (105_710, 288_500)


def test_agents_have_the_figures_that_are_known_of_them():
    sessions = list(islice(preset("agentic", random.Random(0)), 400))
    turns = [list(with_turns(iter([session]), 1)) for session in sessions]
    assert np.median([len(each) for each in turns]) == pytest.approx(33, rel=0.1)
    late = [each[29].prompt_tokens for each in turns if len(each) >= 30]
    assert np.median(late) == pytest.approx(80_000, rel=0.1)
    asked = sum(turn.prompt_tokens for each in turns for turn in each)
    given = sum(turn.output_tokens for each in turns for turn in each)
    assert asked / given == pytest.approx(131, rel=0.15)
    found, total = prefix_reuse(iter(sessions))
    assert 0.94 <= found / total < 0.98  # 94% was found in a cache that had an end


@pytest.mark.parametrize("name", ["chat", "agentic", "rag"])
def test_a_turn_begins_with_the_one_before(name):
    for session in islice(preset(name, random.Random(1)), 50):
        while later := session.then:
            assert later.prompt_tokens > session.prompt_tokens + session.output_tokens
            whole = session.prompt_tokens // BLOCK_SIZE
            assert later.blocks[:whole] == session.blocks[:whole]
            assert len(later.blocks) == -(-later.prompt_tokens // BLOCK_SIZE)
            session = later


def test_sessions_share_the_system_prompt_and_nothing_else():
    first, second = islice(preset("agentic", random.Random(1)), 2)
    assert set(first.blocks) & set(second.blocks) == set(range(4096 // BLOCK_SIZE))


def test_documents_are_shared_by_those_who_ask_for_them():
    found, total = prefix_reuse(islice(preset("rag", random.Random(1)), 500))
    assert 0.6 < found / total < 1


@pytest.mark.parametrize("name", PRESETS)
def test_a_seed_decides(name):
    def some(seed):
        return list(islice(preset(name, random.Random(seed)), 5))

    assert some(3) == some(3) != some(4)


def test_nonsense_is_refused():
    with pytest.raises(InvalidRequestError, match="workload 'web' is not one of azure-conv"):
        preset("web", random.Random(0))
    with pytest.raises(InvalidRequestError, match="rate"):
        next(preset("chat", random.Random(0), 0))


def test_a_session_ends_before_it_is_too_long():
    whole = list(islice(preset("agentic", random.Random(0)), 50))
    short = [ended(first, 40_000) for first in whole]
    for before, after in zip(whole, short, strict=True):
        turns = [list(with_turns(iter([first]), 1)) for first in (before, after)]
        kept = turns[0][: len(turns[1])]
        assert [turn._replace(then=None) for turn in kept] == [turn._replace(then=None) for turn in turns[1]]
        assert all(turn.prompt_tokens + turn.output_tokens <= 40_000 for turn in turns[1][1:])
        if len(turns[1]) < len(turns[0]):
            left = turns[0][len(turns[1])]
            assert left.prompt_tokens + left.output_tokens > 40_000
    assert sum(after is not before for before, after in zip(whole, short, strict=True)) > 10
    assert [ended(first, 10**9) for first in whole] == whole
