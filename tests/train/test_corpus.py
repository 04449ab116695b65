"""Batches: what follows from seed and step alone, and never a token of the held-out end."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniserve.errors import InvalidRequestError
from miniserve.train.corpus import Corpus


@given(number=st.integers(60, 400), length=st.integers(1, 8), seed=st.integers(0, 5), step=st.integers(0, 1000))
def test_windows_are_of_the_text_that_is_trained_on(number, length, seed, step):
    corpus = Corpus(range(number), length, held_out=0.3)
    ids, targets = corpus.batch(seed, step, 5)
    assert ids.shape == targets.shape == (5, length)
    assert torch.equal(targets, ids + 1)
    assert int(targets.max()) < len(corpus.train)
    again, _ = Corpus(range(number), length, held_out=0.3).batch(seed, step, 5)
    assert torch.equal(ids, again)


def test_steps_and_seeds_differ():
    corpus = Corpus(range(10_000), 8)
    found = {tuple(corpus.batch(seed, step, 4)[0].flatten().tolist()) for seed in range(3) for step in range(3)}
    assert len(found) == 9


def test_the_held_out_text_is_read_once_in_order():
    corpus = Corpus(range(1000), 9, held_out=0.1)
    batches = list(corpus.held_out_batches(4, 2))
    assert [len(ids) for ids, _ in batches] == [4, 4]
    every = torch.cat([ids for ids, _ in batches]).flatten().tolist()
    assert every == list(range(900, 900 + 72))
    assert len(list(corpus.held_out_batches(4, 100))) == 3  # 11 windows
    assert all(int(targets.max()) <= 999 for _, targets in corpus.held_out_batches(4, 100))


def test_a_text_that_is_too_short_is_refused():
    with pytest.raises(InvalidRequestError, match=r"the text held out has 5 tokens: a window of it takes 17"):
        Corpus(np.arange(100), 16)
    with pytest.raises(InvalidRequestError, match="between 0 and 1"):
        Corpus(np.arange(100), 4, held_out=1.0)
