"""An engine that cannot be put together leaves no process behind, wherever that is found out."""

import pytest

from miniserve import assembly
from miniserve.errors import MiniserveError, RankError
from miniserve.llm import LLM
from miniserve.model.communicator import ALONE


class Idle:
    """Ranks that are none, and say whether they have been ended."""

    communicator, device = ALONE, "cpu"

    def __init__(self, name, size, *, lost=False, **how):
        self.size, self.lost, self.open = size, lost, True

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.open = False

    def free_beside_steps(self, decoder, *limits):
        return 2**22

    def make_caches(self, num_blocks, block_size, dtype):
        if self.lost:
            raise RankError("rank 1 is gone")


@pytest.fixture
def directory(tiny_directory):
    return str(tiny_directory("qwen3")[0])


@pytest.mark.parametrize(
    ("options", "lost", "says"),
    [
        ({"speculation": "/no/such/model"}, False, "/no/such/model"),
        ({"max_model_len": 10_000}, False, "max_model_len is 10000"),
        ({}, True, "rank 1 is gone"),
    ],
    ids=["draft model", "settings", "KV cache"],
)
def test_what_fails_ends_the_ranks(directory, monkeypatch, options, lost, says):
    made = []
    monkeypatch.setattr(assembly, "Ranks", lambda *args, **how: made.append(Idle(*args, **how, lost=lost)) or made[0])
    with pytest.raises(MiniserveError, match=says):
        LLM(directory, device="cpu", tensor_parallel_size=2, **options)
    assert [ranks.open for ranks in made] == [False]


def test_the_ranks_of_an_engine_end_with_it(directory, monkeypatch):
    made = []
    monkeypatch.setattr(assembly, "Ranks", lambda *args, **how: made.append(Idle(*args, **how)) or made[0])
    with LLM(directory, device="cpu", tensor_parallel_size=2):
        assert made[0].open
        assert made[0].size == 2
    assert not made[0].open
