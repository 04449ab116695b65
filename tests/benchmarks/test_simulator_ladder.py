"""The published figures are whole, and the script simulates what they were measured on."""

import importlib.util
import tomllib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def ladder():
    spec = importlib.util.spec_from_file_location("simulator_ladder", FOLDER / "simulator_ladder.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_column_has_every_shape_and_fits(ladder):
    published = tomllib.loads(ladder.PUBLISHED.read_text())
    assert published["source"].startswith("https://")
    for column in published["columns"]:
        assert len(column["tokens_per_s"]) == len(published["shapes"])
        where = ladder.deployment(column["model"], column["hardware"], column["tensor"], column["weights"], "fp8")
        assert where.num_blocks * where.block_size > 22_000


def test_a_point_is_near_the_published_one(ladder):
    """One of the cheapest; the others are in results/."""
    where = ladder.deployment("llama-3.1-70b", "h200", 1, "fp8", "fp8")
    tokens_per_s, full = ladder.throughput(where, 20_000, 200)
    assert full < 100
    assert 0 < tokens_per_s < 283  # ten times fewer outputs for the same prompts


def test_splitwise_is_slower_than_its_kernels(ladder):
    assert all(0.2 < row["ratio"] < 1 for row in ladder.splitwise())
