"""Guesses from a request's own text, against a search of the whole text."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.core.ngram import LENGTHS, NGramProposer
from miniserve.core.request import Request
from miniserve.core.sampling_params import Limits
from miniserve.errors import InvalidRequestError


def request(tokens, name="r"):
    return Request(name, tokens, Limits(1000))


def searched(tokens, room):
    """What should be found: what followed the latest earlier place where the longest run of last tokens stands."""
    for length in LENGTHS:
        for at in range(len(tokens) - 1, length - 1, -1):
            if len(tokens) >= length and tokens[at - length : at] == tokens[-length:]:
                text = list(tokens)
                for position in range(at, at + room):
                    text.append(text[position])
                return text[len(tokens) :]
    return []


def test_what_followed_before_follows_again():
    (draft,) = NGramProposer(3).propose([request([1, 2, 3, 4, 5, 9, 1, 2])], [3])
    assert draft == [3, 4, 5]


def test_the_longer_match_goes_before_the_later_one():
    (draft,) = NGramProposer(2).propose([request([7, 1, 2, 3, 40, 5, 2, 3, 50, 7, 1, 2, 3])], [1])
    assert draft == [40]


def test_a_loop_goes_on_behind_the_end():
    (draft,) = NGramProposer(7).propose([request([5, 6, 5, 6, 5])], [7])
    assert draft == [6, 5, 6, 5, 6, 5, 6]


def test_new_text_gives_no_draft():
    assert NGramProposer(4).propose([request([1]), request([1, 2, 3], "other")], [4, 4]) == [[], []]


@settings(derandomize=True, deadline=None, max_examples=200)
@given(tokens=st.lists(st.integers(0, 2), min_size=1, max_size=40), cuts=st.sets(st.integers(1, 40)))
def test_growing_is_searching(tokens, cuts):
    """However the text came, in one piece or in several."""
    proposer, growing = NGramProposer(5), request(tokens[:1])
    for cut in sorted({*cuts, len(tokens)}):
        growing.token_ids[:] = tokens[:cut]
        assert proposer.propose([growing], [5]) == [searched(growing.token_ids, 5)]


def test_what_is_forgotten_leaves_nothing_and_can_come_back():
    proposer, again = NGramProposer(2), request([1, 2, 3, 1, 2])
    assert proposer.propose([again], [2]) == [[3, 1]]
    proposer.forget(again)
    proposer.forget(again)
    assert not proposer._indices
    again.token_ids[:] = [4, 4, 5, 4, 4]
    assert proposer.propose([again], [1]) == [[5]]


def test_a_guess_costs_the_same_in_a_long_text():
    def cost(length):
        proposer, growing = NGramProposer(4), request([at % 997 for at in range(length)])
        proposer.propose([growing], [4])
        seconds = []
        for token in range(200):
            growing.token_ids.append(token % 7)
            started = time.process_time()
            proposer.propose([growing], [4])
            seconds.append(time.process_time() - started)
        return sorted(seconds)[100]

    assert cost(50_000) < 5 * cost(100) + 20e-6


def test_a_draft_of_nothing_is_refused():
    with pytest.raises(InvalidRequestError, match="a draft of 0 tokens: it must be at least 1"):
        NGramProposer(0)
