"""Engines in two parts, with real processes: the same tokens; what is seen of their turns; a rank that is gone.

Some 20 s of CPU.
"""

import pytest

from miniserve.errors import InvalidRequestError
from miniserve.fleet.afd.ranks import MODULE
from miniserve.fleet.afd.spans import read_spans
from support.ranks import kill_in_a_step, open_llm, others, tokens, truth


def test_the_same_tokens_in_batches_that_take_turns(tiny_directory, tmp_path):
    """Of a dense model: while one batch is on the other side, attention is computed for another: each rank records it."""
    directory = tiny_directory("qwen3")[0]
    with open_llm(directory, afd="1x2", afd_batches=3, afd_trace=tmp_path) as llm:
        assert tokens(llm) == truth(directory)
        assert "feed-forward parts apart" in str(llm.settings)
        layers = llm.model.config.num_layers
    assert not others(MODULE)
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
def test_the_same_tokens_until_a_rank_is_killed(family, afd, killed, tiny_directory):
    directory = tiny_directory(family)[0]
    llm = open_llm(directory, afd=afd)
    assert tokens(llm) == truth(directory)
    kill_in_a_step(llm, killed, others(MODULE)[killed - 1])
    assert not others(MODULE)


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
            open_llm(tiny_directory(family)[0], afd=afd, **how)
    assert not others(MODULE)
