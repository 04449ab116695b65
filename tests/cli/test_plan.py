"""`miniserve plan`, as a person and as a script sees it; and that what is simulated is never labelled as recorded."""

import json

import pytest
from typer.testing import CliRunner

from miniserve.cli import app
from miniserve.errors import InvalidRequestError
from miniserve.notebook.results import load_results

TINY = ("--model", "qwen3-0.6b", "--hardware", "l4", "--num-requests", "8")
SMALL = (*TINY, "--input-len", "100", "--output-len", "8")


def invoke(*arguments: str) -> str:
    """Standard output; an error of ours escapes as it is, since `main` is what prints it."""
    result = CliRunner().invoke(app, arguments)
    if result.exception:
        raise result.exception
    return result.stdout


def test_the_best_is_first_and_its_cost_follows_from_its_rate(tmp_path):
    command = ("plan", *SMALL, "--gpus", "2", "--slo", "ttft:200,tpot:30", "--max-num-seqs", "16", "--json")
    data = json.loads(invoke(*command, "--out", str(tmp_path / "plan.json")))
    first = data["ranked"][0]
    assert first["output_tokens_per_s_device"] == pytest.approx(first["output_tokens_per_s"] / 2)
    assert first["latencies_s"]["ttft_s"] <= 0.2
    read = load_results("plan", root=tmp_path)
    assert read.label == "simulated"
    assert read.data == data
    assert json.loads(invoke(*command)) == data


def test_a_simulation_is_labelled_as_one(tmp_path):
    command = ("simulate", *SMALL, "--concurrency", "4", "--out", str(tmp_path / "run.json"))
    invoke(*command)
    read = load_results("run", root=tmp_path)
    assert (read.label, read.device) == ("simulated", "NVIDIA L4")
    assert read["completed"] == 8


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (("--gpus", "1", "--slo", "ttft:200", "--max-num-seqs", "2"), "Take 1 × TP1 in bf16"),
        (("--gpus", "1", "--slo", "ttft:1,tpot:1"), "Nothing meets the limits. One request alone could have a TTFT of"),
        (("--gpus", "1", "--slo", "ttft:200", "--weights", "nvfp4"), "No engine can serve even one request"),
        (("--gpus", "2", "--slo", "ttft:200", "--max-num-seqs", "2", "--afd"), "1 × 1A+1F"),
        (
            ("--gpus", "1", "--slo", "ttft:200", "--max-num-seqs", "2", "--hardware", "b300"),
            "b300: $2.34 an hour, a place",
        ),
    ],
)
def test_the_answer_in_words(options, answer):
    assert answer in " ".join(invoke("plan", *SMALL, *options).split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--gpus", "0"), "0 devices: a deployment needs one at least"),
        ((), "give one of --gpus and --budget"),
        (("--gpus", "1", "--draft-acceptance", "2"), "a guess is right in a share of 2"),
        (("--gpus", "1", "--model", "mixtral-8x7b", "--expert-skew", "nan"), "a power law's exponent of nan"),
        (("--gpus", "1", "--budget", "3"), "give one of --gpus and --budget"),
        (("--budget", "3"), "no price of a NVIDIA L4: give --gpus"),
        (("--gpus", "1", "--link-gbytes-per-s", "0"), "bandwidth, 0.0 bytes/s, must be above 0"),
        (("--gpus", "1", "--input-len", "0"), "length '0' must have 1"),
        (("--gpus", "1", "--tiers", "host:1TB:50GB/s"), "nobody would read the tiers"),
        (("--gpus", "1", "--tiers", "dram"), "no memory tier 'dram' beside a NVIDIA L4, and no other there"),
        (("--gpus", "1", "--tiers", "ram"), "tier 'ram' is not in the catalogue; it has dram, nvme, cmx"),
        (("--gpus", "1", "--workload", "chat"), "--workload says what is asked: leave out --input-len"),
    ],
)
def test_nonsense_is_explained(options, message):
    with pytest.raises(InvalidRequestError, match=message):
        invoke("plan", *SMALL, "--slo", "ttft:200", *options)


def test_a_budget_buys_devices_and_a_trace_gives_lengths(tmp_path):
    trace = tmp_path / "trace.csv"
    rows = "\n".join(f"2023-11-16 18:15:{second:02}.0,{100 + second},4" for second in range(10))
    trace.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}\n")
    options = ("--hardware", "h100", "--budget", "3", "--trace", str(trace), "--max-num-seqs", "2", "--json")
    data = json.loads(invoke("plan", *TINY, "--slo", "ttft:200", *options))
    assert data["devices"] == int(3 // data["usd_per_device_hour"]) == 2
    assert (data["mean_prompt_tokens"], data["mean_output_tokens"]) == (104, 4)
    first = data["ranked"][0]
    hourly_tokens = first["output_tokens_per_s"] * 3600
    assert first["usd_per_million_output_tokens"] == pytest.approx(
        2 * data["usd_per_device_hour"] / hourly_tokens * 1e6
    )


def test_stacks_of_tiers_for_sessions(tmp_path):
    """What was found and where is in every row, the tiers' numbers come with their sources, and a seed decides all."""
    trace = tmp_path / "trace.jsonl"
    rows = [
        {"timestamp": 1000 * at, "input_length": 1024, "output_length": 4, "hash_ids": [at % 40, 100 + at % 40]}
        for at in range(160)
    ]
    trace.write_text("\n".join(json.dumps(row) for row in rows))
    options = (
        "--model",
        "qwen3-0.6b",
        "--hardware",
        "h100",
        "--gpus",
        "1",
        "--trace",
        str(trace),
        "--max-num-seqs",
        "4",
    )
    command = ("plan", *options, "--slo", "ttft:500", "--num-requests", "16", "--tiers", "dram,dram+nvme")
    data = json.loads(invoke(*command, "--json"))
    assert data["user"] == "user"
    assert data["found_at_most"] == pytest.approx(0.75, abs=0.02)
    assert {tuple(row["tiers"]) for row in data["ranked"]} == {(), ("dram",), ("dram", "nvme")}
    assert data["tiers"]["dram read_bandwidth_bytes_per_s"].startswith("5.56e+10 (secondary")
    for row in data["ranked"]:
        assert row["hit_shares"]["device"] > 0.7
        assert row["usd_per_million_output_tokens"] > 0
        assert not row["tiers"] or row["limit"].startswith("the device's own memory holds all that is reused")
    assert json.loads(invoke(*command, "--json")) == data
    shown = " ".join(invoke(*command).split())
    assert "What tiers cost is not in $/M" in shown
    with pytest.raises(InvalidRequestError, match="--trace says what is asked: leave out --workload"):
        invoke(*command, "--workload", "chat")


def test_halves_that_take_turns():
    options = (
        "--model",
        "mixtral-8x7b",
        "--hardware",
        "h100",
        "--gpus",
        "4",
        "--num-requests",
        "4",
        "--max-num-seqs",
        "2",
    )
    command = ("plan", *options, "--slo", "ttft:900", "--output-len", "4", "--input-len", "64", "--json")
    plain, turns = (json.loads(invoke(*command, *more)) for more in ((), ("--overlap",)))
    assert {row["deployment"] for row in plain["ranked"]} == {row["deployment"] for row in turns["ranked"]}
    assert plain["ranked"] != turns["ranked"]


def test_the_best_few_and_how_many_are_behind_them():
    command = ("plan", *SMALL, "--gpus", "2", "--slo", "ttft:200", "--max-num-seqs", "2")
    shown = " ".join(invoke(*command, "--top", "1").split())
    every = len(json.loads(invoke(*command, "--top", "1", "--json"))["ranked"])
    assert every > 2
    assert f"{every - 1} more are behind these. Take " in shown
    assert "are behind these" not in invoke(*command, "--top", str(every))


def test_sessions_that_would_be_too_long_end_and_the_plan_says_so():
    command = ("plan", *TINY, "--gpus", "1", "--slo", "ttft:1", "--workload")
    data = json.loads(invoke(*command, "agentic", "--json"))
    assert data["most_tokens"] == 2**17
    assert 0.02 < data["load"]["turns_left_out"] < 0.3
    assert "of their turns out" in " ".join(invoke(*command, "agentic").split())
    assert "turns out" not in invoke(*command, "chat")
