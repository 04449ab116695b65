"""The published figures are whole, and the script simulates what they were measured on."""

import importlib.util
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
    published = ladder.published("trtllm_throughput")
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


def test_what_is_arithmetic_is_exact(ladder):
    """DeepSeek's own figure to the dollar; of NVIDIA's "35 times" and "50 times", what their figures make."""
    rows = {row["what"]: (row["computed"], row["published"]) for row in ladder.exact()}
    assert rows["DeepSeek's day, $"] == (87072, 87072)
    cost, energy = rows["tokens for a dollar, times"], rows["tokens for a joule, times"]
    assert (round(cost[0], 1), cost[1]) == (35.4, 35)  # 6000 / 90 · 1.41 / 2.652
    assert (round(energy[0], 1), energy[1]) == (54.9, 50)  # 6000 / 90 · 1.73 / 2.10


def test_the_network_is_as_it_was_timed(ladder):
    rows = ladder.network()
    assert len(rows) == 10
    assert all(row["ratio"] == pytest.approx(1, abs=0.1) for row in rows)


def test_racks_are_near_or_say_why_not(ladder):
    """DeepSeek's EP144 over 18 nodes, and SGLang's 48 ranks in one rack; nothing was fitted to either."""
    rows = ladder.racks()
    assert {row["ranks"] for row in rows} == {32, 48, 144}
    for row in rows:
        assert abs(row["ratio"] - 1) <= 0.25 or row.get("reason"), row["name"]
        assert row["simulated"] >= row["without_overlap"]
        assert (row["simulated"] == row["without_overlap"]) != row["overlap"]
    points = ladder.published("racks")["points"]
    assert all(point["source"].startswith("https://") for point in points)
    full = ladder.rank(points[0], overlap=True)
    assert full.parallel.num_devices == 144 > full.device.link_domain


def test_as_many_as_come_in_time(ladder):
    """The batch that is not published: one more would be too slow, or not fit."""
    points = ladder.published("racks")["points"]
    (timed,) = (point for point in points if "tokens_per_s_user" in point)
    rate, batch = ladder.rank_tokens_per_s(timed, overlap=True)
    assert rate / batch >= timed["tokens_per_s_user"] > 0.99 * rate / batch
    where, untimed = ladder.rank(points[-1], overlap=False), points[-1]
    _, batch = ladder.rank_tokens_per_s(untimed, overlap=False)
    assert batch * untimed["context"] <= where.num_blocks * where.block_size < (batch + 1) * untimed["context"]


def test_engines_in_two_parts_are_near_or_say_why_not(ladder):
    """What was measured lies between another engine's kernels and the roofline, which no kernel reaches."""
    (row,) = ladder.apart()
    assert row["simulated"] < row["tokens_per_s"] < row["at_roofline"]
    assert abs(row["ratio"] - 1) <= 0.25 or row["reason"]
    assert sum(map(int, row["sides"].split("x"))) == row["devices"]
