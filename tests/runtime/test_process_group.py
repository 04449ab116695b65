"""Sums over gloo, the ranks being threads here: each rank's group is an object, so one process can hold them all."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from miniserve.errors import RankError
from miniserve.runtime import process_group
from miniserve.runtime.process_group import connect

CPU = torch.device("cpu")


def connected(size, file):
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: connect(rank, size, file, CPU), range(size)))


def all_reduce(groups, parts):
    with ThreadPoolExecutor(len(groups)) as pool:
        return list(pool.map(lambda group, part: group.all_reduce(part), groups, parts))


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_rank_gets_the_same_sum(size, dtype, tmp_path):
    groups = connected(size, tmp_path / "ranks")
    parts = [torch.randn(7, 5, generator=torch.Generator().manual_seed(rank)).to(dtype) for rank in range(size)]
    expected = sum(parts[1:], start=parts[0])
    for got in all_reduce(groups, parts):
        assert torch.equal(got, expected)
    strided = [part.t() for part in parts]
    for got in all_reduce(groups, strided):
        assert torch.equal(got, expected.t())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.int64])
def test_rows_travel_in_any_number(dtype, tmp_path):
    """None, one or several from each rank to each, this one too; and all of everyone's."""
    sent = [[0, 2, 1], [3, 0, 0], [0, 0, 0]]
    groups = connected(3, tmp_path / "ranks")
    parts = [[torch.full((n, 2), 10 * rank + to).to(dtype) for to, n in enumerate(sent[rank])] for rank in range(3)]
    wholes = [torch.full((2, 1), rank).to(dtype) for rank in range(3)]

    def exchange(group, rank):
        received = [row[rank] for row in sent]
        return group.all_to_all(torch.cat(parts[rank]), sent[rank], received), group.all_gather(wholes[rank])

    with ThreadPoolExecutor(3) as pool:
        for rank, (got, gathered) in enumerate(pool.map(exchange, groups, range(3))):
            assert torch.equal(got, torch.cat([given[rank] for given in parts]))
            assert torch.equal(gathered, torch.cat(wholes))


def test_two_groups_in_one_process_do_not_meet(tmp_path):
    one, other = connected(2, tmp_path / "one"), connected(2, tmp_path / "other")
    sums = all_reduce([*one, *other], [torch.tensor([float(n)]) for n in (1, 2, 30, 40)])
    assert [got.item() for got in sums] == [3, 3, 70, 70]


def test_a_rank_that_hangs_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(process_group, "TIMEOUT_S", 0.5)
    first, _second = connected(2, tmp_path / "ranks")
    rows = torch.ones(2, 1)
    for wait in (first.all_reduce, first.all_gather, lambda x: first.all_to_all(x, [1, 1], [1, 1])):
        with pytest.raises(RankError, match="rank 0 got nothing from another rank"):
            wait(rows)
